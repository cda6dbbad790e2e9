"""What bounds success: the true one of each learned part is swapped in, the rest stays as it is.

A row that rises when a part is replaced by the truth names that part as a bound.

    agent                 learned dynamics, learned cost, the agent's own search
    agent_larger          the same with a larger budget
    true_contact          true dynamics,    learned cost of the true picture
    true_cost             learned dynamics, true way's length from the decoded position
    true_contact_cost     true dynamics,    true way's length from the position perceived in the true picture
    true_all              true dynamics,    true way's length: what is left is search

Legend: B episodes, S candidates, H horizon, D state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from rich.progress import Progress
from torch import Tensor

from lightning_jepa.evaluation.episodes import Acting, AgentPolicy, Episodes, run_episodes
from lightning_jepa.evaluation.fields import Field, energy_field, perceived_field, way_field
from lightning_jepa.evaluation.floors import TrueDynamics
from lightning_jepa.evaluation.rollouts import Decode
from lightning_jepa.evaluation.world import ExamWorld
from lightning_jepa.protocols import Cost, Planner, WorldModel
from lightning_jepa.types import Modulation, Tasks

MakeAgent = Callable[[WorldModel, Cost, Planner], Acting]


class EnergyOfPlace:
    """The learned cost of what would be seen at a true position (protocol `Cost` on states of `TrueDynamics`)."""

    def __init__(self, world_model: WorldModel, cost: Cost) -> None:
        self.world_model, self.cost = world_model, cost

    def prepare(self, world: ExamWorld, tasks: Tasks) -> None:
        """Draw, encode and judge every place of the tasks' layouts."""
        self.energy: Field = energy_field(world, self.world_model, self.cost, tasks.layouts, tasks.goals)

    def __call__(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, H, 2] -> [B, S, H]."""
        return self.energy.at(states)[..., 0]


class Ways:
    """The true ways to the goals of the present tasks, measured once for all costs that ask for them."""

    def __init__(self) -> None:
        self._tasks: Tasks | None = None

    def of(self, world: ExamWorld, tasks: Tasks) -> Field:
        """The way's length from every place of the tasks' layouts."""
        known = self._tasks
        if known is None or known.goals.shape != tasks.goals.shape or not all(map(torch.equal, known, tasks)):
            self._tasks, self._field = tasks, way_field(world, tasks.layouts, tasks.goals)
        return self._field


class WayLength:
    """The true way's length from the position that `decode` reads off a state (protocol `Cost`), px."""

    def __init__(self, ways: Ways, decode: Decode) -> None:
        self.ways, self.decode = ways, decode

    def prepare(self, world: ExamWorld, tasks: Tasks) -> None:
        """Look up the ways of the tasks."""
        self.way = self.ways.of(world, tasks)

    def __call__(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, H, D] -> [B, S, H]."""
        return self.way.at(self.decode(states))[..., 0]


class PerceivedWayLength(WayLength):
    """The true way's length from where the encoder sees the agent (states of `TrueDynamics`)."""

    def __init__(self, ways: Ways, world_model: WorldModel, decode: Decode) -> None:
        super().__init__(ways, self.perceived)
        self.world_model, self.read = world_model, decode

    def prepare(self, world: ExamWorld, tasks: Tasks) -> None:
        """Look up the ways, and encode and decode every place."""
        super().prepare(world, tasks)
        self.seen: Field = perceived_field(world, self.world_model, self.read, tasks.layouts)

    def perceived(self, states: Tensor) -> Tensor:
        """True positions [B, S, H, 2] -> perceived ones [B, S, H, 2]."""
        return self.seen.at(states)


def diagnose(
    world: ExamWorld,
    tasks: Tasks,
    *,
    world_model: WorldModel,
    cost: Cost,
    decode: Decode,
    larger: Planner | None,
    search: Planner,
    make_agent: MakeAgent,
    radius: float = 4.5,
    batch: int = 50,
    progress: Progress | None = None,
) -> dict[str, Episodes]:
    """One row for each swap, all on the same tasks, named as in the module's docstring, but the agent's own.

    `larger` is the agent's planner with a larger budget, and `search` minimises whatever cost it is given.
    """
    truth = TrueDynamics(world)
    ways, place = Ways(), EnergyOfPlace(world_model, cost)
    way, decoded = WayLength(ways, lambda s: s), WayLength(ways, decode)
    perceived = PerceivedWayLength(ways, world_model, decode)
    policies: Mapping[str, AgentPolicy] = {
        "true_contact": AgentPolicy(make_agent(truth, place, search), place.prepare),
        "true_cost": AgentPolicy(make_agent(world_model, decoded, search), decoded.prepare),
        "true_contact_cost": AgentPolicy(make_agent(truth, perceived, search), perceived.prepare),
        "true_all": AgentPolicy(make_agent(truth, way, search), way.prepare),
    }
    if larger is not None:
        policies = {**policies, "agent_larger": AgentPolicy(make_agent(world_model, cost, larger))}
    return {
        name: run_episodes(
            world, tasks, policy, radius=radius, batch=batch, progress=progress, label=f"diagnosis: {name}"
        )
        for name, policy in policies.items()
    }
