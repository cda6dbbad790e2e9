"""One level of a hierarchy while it is planned with: what it wants next in each episode, and when it plans anew.

Legend: B episodes, H horizon, A action, D' state of the level, n steps of the level below in one of it.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from lightning_jepa.protocols import Correctable, Cost, LevelModel, Planner
from lightning_jepa.types import Modulation, Plan


class Floor:
    """A level above the first, while one task lasts."""

    def __init__(self, model: LevelModel, planner: Planner, goal: Tensor, hold: int, reached: float) -> None:
        self.model, self.planner, self.goal = model, planner, goal
        self.hold, self.reached = hold, reached
        self.due = torch.ones(len(goal), dtype=torch.bool, device=goal.device)  # to plan anew, [B]
        self._left = torch.zeros(len(goal), dtype=torch.long, device=goal.device)  # plans of the level below, [B]
        self._plan: Plan | None = None
        self._here = goal  # until the agents stand somewhere
        self._way = goal.new_zeros(len(goal))  # how far it was to the subgoal when it became one, [B]

    @property
    def planned(self) -> Plan:
        """The plan that is followed."""
        assert self._plan is not None
        return self._plan

    def stand(self, s: Tensor, below: Tensor) -> Tensor:
        """The agents are at s [B, D'] now, and the level below may plan anew, [B]; says where this one has to."""
        self._here = s
        self._left = self._left - below.long()
        late = self._left <= 0
        self.due = late
        if self._plan is not None:
            off = self._off()
            self.due = late | (off < (1 - self.reached) * self._way)
            failed = late & (off > (1 - self.reached / 2) * self._way)  # else it is on its way
            if isinstance(self.planner, Correctable) and failed.any():
                self.planner.out_of_reach(s, self.subgoal(), failed)
        return self.due

    def begin(self, cost: Cost, modulation: Modulation, proposed: Tensor | None, generator: Generator | None) -> int:
        """Plan anew where it is time to, from what is proposed or left; returns model steps."""
        self._left = self._left.masked_fill(self.due, self.hold)
        start = proposed
        if start is None and self._plan is not None and self._plan.actions.shape[1] > 1:
            start = self._plan.actions[:, 1:]  # the first is done, or it was out of reach
        return self.search(cost, modulation, start, generator)

    def subgoal(self) -> Tensor:
        """The state that is wanted next, [B, D']."""
        return self.planned.states[:, 0]

    def proposed(self) -> Tensor | None:
        """What its policy would do below to reach the subgoal, [B, n, A]."""
        return None if self.model.reach is None else self.model.reach(self._here, self.subgoal())

    def search(self, cost: Cost, modulation: Modulation, start: Tensor | None, generator: Generator | None) -> int:
        """Plan, for whom it is due; returns the model steps of an episode, on average.

        A batch is searched as a whole, as a planner may know it by its goals; who is not due keeps the plan there is.
        """
        found = self.planner.plan(self._here, self.model, cost, modulation, start, generator)
        self._plan = found if self._plan is None else either(self.due, found, self._plan)
        if isinstance(self.planner, Correctable):
            self.planner.followed(self._here, self.due)
        self._way = torch.where(self.due, self._off(), self._way)
        return share_of(found.evaluations, self.due)

    def _off(self) -> Tensor:
        """How far from the subgoal, [B]."""
        metric: nn.Module = self.model.metric
        distance: Tensor = (metric(self._here) - metric(self.subgoal())).norm(dim=-1)
        return distance


def share_of(evaluations: int, planned: Tensor) -> int:
    """Model steps of an episode on average, where some [B] planned."""
    return round(evaluations * float(planned.float().mean()))


def either(new: Tensor, one: Plan, other: Plan) -> Plan:
    """One plan in some episodes [B], the other elsewhere."""
    there = new[:, None, None]
    return Plan(
        torch.where(there, one.actions, other.actions),
        torch.where(there, one.states, other.states),
        torch.where(new, one.cost, other.cost),
        one.evaluations,
    )
