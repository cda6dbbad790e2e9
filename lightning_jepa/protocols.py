"""The seams of the house as structural types: rooms meet here and do not import each other.

Legend: B batch, T time, C H W image, D state, A action, S candidates, H horizon, P body, N truth.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Generator, Tensor

from lightning_jepa.types import Modulation, Plan


class Encoder(Protocol):
    """Perception, s = Enc(x) (paper section 3, "Perception")."""

    state_size: int

    def __call__(self, observations: Tensor) -> Tensor:
        """uint8 [B, T, C, H, W] -> s [B, T, D]."""
        ...


class Predictor(Protocol):
    """One causal prediction step, s[t+1] = Pred(s[t], a[t]) (paper section 4.4).

    Takes a history of states and the action taken in each of them, and returns the successor of each. A Markov
    predictor has `history == 1` and treats every leading axis alike; one with memory may look back `history` steps.
    """

    history: int

    def __call__(self, s: Tensor, a: Tensor) -> Tensor:
        """[..., T, D], [..., T, A] -> [..., T, D]."""
        ...


class WorldModel(Protocol):
    """What a planner needs of a world model: encoding and imagining."""

    def encode(self, observations: Tensor) -> Tensor:
        """uint8 [B, T, C, H, W] -> s [B, T, D]."""
        ...

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        """From s [B, D] by S candidate sequences [B, S, H, A]: the states that follow [B, S, H, D]."""
        ...


class Cost(Protocol):
    """C(s), the energy that the actor minimises (paper section 3.2); the planner sums it over the horizon."""

    def __call__(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, H, D], [B, S, H, A] -> [B, S, H]."""
        ...


class Planner(Protocol):
    """Mode-2: infer the action sequence of least total cost (paper section 3.1.2)."""

    def plan(
        self,
        s: Tensor,
        world_model: WorldModel,
        cost: Cost,
        modulation: Modulation,
        start: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Plan:
        """Plan from s [B, D]; `start` [B, H, A] is a warm start, usually the rest of the previous plan."""
        ...


@runtime_checkable
class CostBuilder(Protocol):
    """A planner that makes its own cost for a start and a goal, such as the cost-to-go of a search over a graph."""

    def build(self, s: Tensor, world_model: WorldModel, goal: Tensor, generator: Generator | None = None) -> Cost:
        """For B episodes that stand at s [B, D] and have goals [B, D]."""
        ...


class World(Protocol):
    """B episodes of a simulated world, stepped and rendered at once."""

    name: str
    action_size: int
    action_bound: float  # largest norm of an action
    episode_steps: int
    observation_shape: tuple[int, int, int]  # C, H, W
    truth_names: tuple[str, ...]
    state: Tensor  # [B, 2 or more]: exact, readable and settable

    def reset(self, layouts: Tensor, state: Tensor) -> Tensor:
        """Layout ids [B] and states -> the first observations, uint8 [B, C, H, W]."""
        ...

    def step(self, actions: Tensor) -> Tensor:
        """[B, A] -> the next observations, uint8 [B, C, H, W]."""
        ...

    def render(self) -> Tensor:
        """The current observations, uint8 [B, C, H, W]."""
        ...

    def truth(self) -> Tensor:
        """What probes try to read from the state, [B, N], named by `truth_names`."""
        ...
