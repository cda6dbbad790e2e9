"""The seams of the house as structural types: rooms meet here and do not import each other.

Legend: B batch, T time, C H W image, D state, A action, S candidates, H horizon, P body, N truth,
M scenarios, U uniform numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Generator, Tensor
from torch.nn import Module

from lightning_jepa.types import Modulation, Plan


class Encoder(Protocol):
    """Perception, s = Enc(x) (paper section 3, "Perception")."""

    state_size: int

    def __call__(self, observations: Tensor) -> Tensor:
        """uint8 [B, T, C, H, W] -> s [B, T, D]."""
        ...


class Predictor(Protocol):
    """One prediction step, s[t+1] = Pred(s[t], a[t]) (paper section 4.4).

    Takes successive states and the action taken in each of them, and returns what follows the last one. A predictor may
    look back `history` steps; a Markov one has `history == 1`. The axes before are those of a batch. Where they are
    broadcast, as for many actions in the same state, what depends on the state alone need be worked out only once.
    """

    history: int

    def __call__(self, s: Tensor, a: Tensor) -> Tensor:
        """[..., T, D], [..., T, A] -> [..., D]."""
        ...


class WorldModel(Protocol):
    """What a planner needs of a world model: encoding and imagining."""

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        """What is seen, uint8 [B, T, C, H, W], and felt, [B, T, P] -> s [B, T, D]; the body's part comes last.

        None of the body is for what is only imagined, such as a goal: that part is zero then.
        """
        ...

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        """From s [B, D] by S candidate sequences [B, S, H, A]: the states that follow [B, S, H, D]."""
        ...


class EnergyModel(WorldModel, Protocol):
    """A world model that says how compatible a continuation is with what is known, and imagines several futures."""

    @property
    def noise(self) -> int:
        """Numbers in [0, 1) that decide what happens in a step of a scenario; 0 where nothing is left to chance."""
        ...

    def energy(self, s: Tensor, actions: Tensor, s_y: Tensor) -> Tensor:
        """F(x, y) [B] of continuations s_y [B, H, D] from s [B, D] by actions [B, H, A] (paper section 4.1)."""
        ...

    def scenarios(self, s: Tensor, actions: Tensor, uniform: Tensor) -> Tensor:
        """From s [B, D] by [B, S, H, A], in M scenarios made of numbers [M, H, U]: [B, S, M, H, D]."""
        ...


class BranchingModel(WorldModel, Protocol):
    """A world model that says what one step may lead to."""

    def outcomes(self, s: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """From s [N, D] by actions [N, A]: M states [N, M, D] and their probabilities [N, M]."""
        ...


class LevelModel(WorldModel, Protocol):
    """One level of a hierarchy above the first: it encodes states of the level below in the place of pictures."""

    metric: Module  # from states [..., D] to a space whose distances say what to approach
    action_size: int  # of its macro-actions
    steps: int  # of the level below, in one of its own
    reach: Callable[[Tensor, Tensor], Tensor] | None  # states [B, D], [B, D] -> what to do below in between [B, n, A]

    def white(self, actions: Tensor) -> Tensor:
        """Its macro-actions [..., M] as its planner has them."""
        ...


class Hierarchy(WorldModel, Protocol):
    """A world model with others on top, whose steps are longer (paper section 4.6); it is its own first level."""

    @property
    def depth(self) -> int:
        """How many levels there are."""
        ...

    def above(self, number: int) -> LevelModel:
        """Level 2 or one above, to plan with."""
        ...


class Cost(Protocol):
    """C(s), the energy that the actor minimises (paper section 3.2); the planner sums it over the horizon."""

    def __call__(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, H, D], [B, S, H, A] -> [B, S, H]."""
        ...


class Memory(Protocol):
    """What remembers B episodes side by side (paper section 3, "Short-Term Memory"): N slots each."""

    energies: Tensor  # [B, N, K]

    @property
    def capacity(self) -> int:
        """N."""
        ...

    def pairs(self, delta: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, slots of tau and slots of tau + delta, [n] each, of all moments that far apart."""
        ...

    def kernel(self, queries: Tensor, embed: Callable[[Tensor], Tensor], bandwidth: float) -> Tensor:
        """Similarity of states [B, Q, D] to each moment, [B, Q, N]."""
        ...


class Policy(Protocol):
    """Mode-1: from a state straight to an action (paper section 3.1.1)."""

    action_bound: float  # largest norm of an action

    def act(self, s: Tensor, modulation: Modulation) -> Tensor:
        """S [B, D] -> actions [B, A]."""
        ...

    def propose(self, s: Tensor, world_model: WorldModel, modulation: Modulation, horizon: int) -> Tensor:
        """What it would do over the horizon, in imagination: [B, H, A]."""
        ...


class Planner(Protocol):
    """Mode-2: infer the action sequence of least total cost (paper section 3.1.2)."""

    @property
    def horizon(self) -> int:
        """Actions in a plan."""
        ...

    @property
    def action_bound(self) -> float:
        """Largest norm of an action."""
        ...

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


@runtime_checkable
class Correctable(Protocol):
    """A planner that learns where its plans fail, within a task."""

    def out_of_reach(self, s: Tensor, target: Tensor, where: Tensor) -> None:
        """What it planned from s [B, D] did not lead to a target [B, D] in the episodes `where`, bool [B]."""
        ...

    def followed(self, s: Tensor, where: Tensor) -> None:
        """The plan that it has just made is the one that agents at s [B, D] follow in the episodes `where`, [B]."""
        ...


@runtime_checkable
class Scouting(Protocol):
    """A planner of a level that looks around with the model of the level below before it plans."""

    def scout(
        self,
        s: Tensor,
        goal: Tensor,
        below: WorldModel,
        lift: Callable[[Tensor], Tensor],
        generator: Generator | None = None,
    ) -> None:
        """From s [B, D] and goals [B, D] of the level below, whose states [B, T, D] `lift` takes to this level's."""
        ...


class World(Protocol):
    """B episodes of a simulated world, stepped and rendered at once."""

    name: str
    action_size: int
    action_bound: float  # largest norm of an action
    episode_steps: int
    observation_shape: tuple[int, int, int]  # C, H, W
    body_names: tuple[str, ...]  # of what the agent feels; none in worlds without a body
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

    def body(self) -> Tensor:
        """What the agent feels of itself now, [B, P], named by `body_names`."""
        ...

    def truth(self) -> Tensor:
        """What probes try to read from the state, [B, N], named by `truth_names`."""
        ...
