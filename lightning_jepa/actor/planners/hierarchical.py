"""Hierarchical Mode-2: each level plans in its own steps, and its next state is what the level below has to reach.

Legend: B episodes, S candidates, H horizon, A action, D state of level 1, D' of a level above, M metric space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor, nn

from lightning_jepa.actor.planners.shooting import check_counts, check_positive, pick
from lightning_jepa.protocols import Cost, Hierarchy, LevelModel, Planner
from lightning_jepa.types import Modulation, Plan


class HierarchicalPlanner:
    """Top-down planning (paper section 4.6, Fig. 16).

        a2 = argmin sum C(s2),   then   a = argmin sum C(s; s2[1])   and so on down to level 1

    The top level approaches the goal, each level below the state that the level above wants next. A level plans anew
    after some plans of the level below. Until then an episode whose subgoal is reached goes on to the next one of the
    same plan; one that does not reach it gets another with the new plan.

    Args:
        planners: "level1", "level2" and so on -> that level's. Those above the first search among white actions, see
            `world_model.level.Whitened`; one that lacks its `metric` gets the level's.
        goal: what makes the top level's cost of its `metric`.
        subgoal: what makes that of a level below, of the `lift` and `metric` of the level above.
        hold: plans of the level below for each plan of a level.
        reached: a subgoal is, as soon as the agent has come this share of the way to it, in the metric of its level.

    Raises:
        ValueError: if there are fewer than two levels, or a number is out of its range.
    """

    def __init__(
        self,
        planners: Mapping[str, Planner | Callable[..., Planner]],
        goal: Callable[..., Cost],
        subgoal: Callable[..., Cost],
        hold: int = 2,
        reached: float = 0.7,
    ) -> None:
        names = [f"level{number}" for number in range(1, max(2, len(planners)) + 1)]
        if sorted(planners) != names:
            raise ValueError(f"planner.planners has {sorted(planners)}: give one for each level, {', '.join(names)}")
        check_counts(hold=hold)
        check_positive(reached=reached)
        first = planners["level1"]
        if callable(first):
            raise ValueError("planner.planners.level1 lacks its metric: it approaches subgoals; choose cem or mppi")
        self.lowest: Planner = first
        self.above = [planners[name] for name in names[1:]]
        self.goal, self.subgoal, self.hold, self.reached = goal, subgoal, hold, reached
        self._task: Tensor | None = None
        self._floors: list[_Floor] = []

    @property
    def horizon(self) -> int:
        """Actions in a plan of level 1."""
        return self.lowest.horizon

    @property
    def action_bound(self) -> float:
        """Largest norm of an action of level 1."""
        return self.lowest.action_bound

    @torch.no_grad()
    def plan(
        self,
        s: Tensor,
        world_model: Hierarchy,
        cost: Cost,
        modulation: Modulation,
        start: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Plan:
        """See `protocols.Planner`; evaluations are the steps of all levels. `cost` is level 1's, and is not used.

        Raises:
            ValueError: if the world model has fewer levels than there are planners.
        """
        if self._task is not modulation.goal:
            self._task = modulation.goal
            self._floors = self._begin(world_model, modulation.goal)
        states = [s]
        for floor in self._floors:
            states.append(floor.model.encode(states[-1][:, None])[:, 0])
        spent, target = 0, None
        for number in reversed(range(len(self._floors))):
            floor, here = self._floors[number], states[number + 1]
            if target is None:
                wanted, energy = floor.goal, self.goal(metric=floor.model.metric)
            else:
                above = self._floors[number + 1].model
                wanted, energy = target, self.subgoal(lift=above.encode, metric=above.metric)
            spent += floor.advance(here, Modulation(wanted), energy, generator)
            target = floor.subgoal()
        assert target is not None
        lowest = self._floors[0].model
        energy = self.subgoal(lift=lowest.encode, metric=lowest.metric)
        plan = self.lowest.plan(s, world_model, energy, Modulation(target), start, generator)
        return Plan(plan.actions, plan.states, plan.cost, plan.evaluations + spent)

    @property
    def subgoals(self) -> list[Tensor]:
        """What each level above the first wants next, [B, D'], the lowest first: for pictures."""
        return [floor.subgoal() for floor in self._floors]

    def _begin(self, world_model: Hierarchy, goal: Tensor) -> list[_Floor]:
        depth = getattr(world_model, "depth", 1)
        if depth <= len(self.above):
            raise ValueError(
                f"planners for {1 + len(self.above)} levels, but the world model has {depth}: evaluate a checkpoint "
                "that was stacked as high (train=level2), or give fewer planners"
            )
        floors = []
        for number, make in enumerate(self.above, 2):
            model = world_model.above(number)
            goal = model.encode(goal[:, None])[:, 0]
            planner = make(metric=model.metric) if callable(make) else make
            floors.append(_Floor(model, planner, goal, self.hold, self.reached))
        return floors


class _Floor:
    """A level above the first, while one task lasts."""

    def __init__(self, model: LevelModel, planner: Planner, goal: Tensor, hold: int, reached: float) -> None:
        self.model, self.planner, self.goal = model, planner, goal
        self.hold, self.reached = hold, reached
        self._left = 0
        self._plan: Plan | None = None

    def advance(self, s: Tensor, modulation: Modulation, cost: Cost, generator: Generator | None) -> int:
        """Plan anew from s [B, D'] if it is time to, else see who goes on to the next subgoal; returns model steps."""
        self._left -= 1
        if self._plan is None or self._left <= 0:
            start = None if self._plan is None else self._plan.actions[:, 1:]
            start = None if start is None or not start.shape[1] else start
            self._plan = self.planner.plan(s, self.model, cost, modulation, start, generator)
            self._left = self.hold
            self._next = torch.zeros(len(s), dtype=torch.long, device=s.device)
            self._way = self._off(s)
            return self._plan.evaluations
        arrived = self._off(s) < (1 - self.reached) * self._way
        self._next = (self._next + arrived.long()).clamp_max(self._plan.states.shape[1] - 1)
        self._way = torch.where(arrived, self._off(s), self._way)
        return 0

    def subgoal(self) -> Tensor:
        """The state that is wanted next, [B, D']."""
        assert self._plan is not None
        return pick(self._plan.states, self._next[:, None])[:, 0]

    def _off(self, s: Tensor) -> Tensor:
        """How far from the subgoal, [B]."""
        metric: nn.Module = self.model.metric
        distance: Tensor = (metric(s) - metric(self.subgoal())).norm(dim=-1)
        return distance
