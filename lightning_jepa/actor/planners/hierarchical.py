"""Hierarchical Mode-2: each level plans in its own steps, and its next state is what the level below has to reach.

Legend: B episodes, S candidates, H horizon, A action, D state of level 1, D' of a level above, M metric space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor, nn

from lightning_jepa.actor.planners.floor import Floor, either, share_of
from lightning_jepa.actor.planners.shooting import check_counts, check_positive
from lightning_jepa.actor.planners.tree import TreeSearch
from lightning_jepa.protocols import Cost, CostBuilder, Hierarchy, Planner, Scouting, WorldModel
from lightning_jepa.types import Modulation, Plan


class HierarchicalPlanner:
    """Top-down planning (paper section 4.6, Fig. 16).

        a2 = argmin sum C(s2),   then   a = argmin sum C(s; s2[1])   and so on down to level 1

    The top level approaches the goal, each level below the state that the level above wants next. A level plans anew
    where its subgoal is reached, or has not been within some plans of the level below: it can't be, or not yet. So does
    a level whose own subgoal is another one now. Each episode has its own times, and counts its own evaluations.

    Where a level has a policy to reach its states, that of the level below starts its plans from what it proposes
    (Mode-1 helps Mode-2, section 3.1.3); with `planner=reactive` it carries that out and does not search.

    With `refinements` levels then take turns: each that has just planned does so again, with what the level below finds
    it can reach as a part of its cost, and those below follow ("a joint optimization of the actions in all layers").

        a2 = argmin sum C(s2) + agreement |v(s2[1]) - v(Enc2(s[n]))|^2 / M

    Args:
        planners: "level1", "level2" and so on -> that level's. Those above the first search among white actions, see
            `world_model.level.Whitened`; one that lacks its `metric` gets the level's.
        goal: what makes the top level's cost of its `metric`.
        subgoal: what makes that of a level below, of the `lift` and `metric` of the level above.
        hold: plans of the level below within which a subgoal has to be reached.
        reached: a subgoal is, as soon as the agent has come this share of the way to it, in the metric of its level.
        judged: the level whose states the agent's own cost judges, such as one with a critic; none: it is not used. At
            the top it takes the place of `goal`, below it is added to that of the subgoal.
        refinements: turns of joint optimisation after each plan of a level above the first.
        agreement: see above.

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
        judged: int | None = None,
        refinements: int = 0,
        agreement: float = 1.0,
    ) -> None:
        names = [f"level{number}" for number in range(1, max(2, len(planners)) + 1)]
        if sorted(planners) != names:
            raise ValueError(f"planner.planners has {sorted(planners)}: give one for each level, {', '.join(names)}")
        check_counts(hold=hold)
        check_positive(reached=reached, agreement=agreement)
        if refinements < 0 or not 1 <= (judged or 1) <= len(planners):
            raise ValueError(
                f"planner.refinements={refinements}, planner.judged={judged}: give 0 or more, and one of the "
                f"{len(planners)} levels or null"
            )
        first = planners["level1"]
        if callable(first):
            raise ValueError("planner.planners.level1 lacks its metric: it approaches subgoals; choose cem or mppi")
        self.lowest: Planner = first
        self.above = [planners[name] for name in names[1:]]
        self.goal, self.subgoal, self.hold, self.reached = goal, subgoal, hold, reached
        self.judged, self.refinements, self.agreement = judged, refinements, agreement
        self._task: Tensor | None = None
        self._floors: list[Floor] = []

    @property
    def depth(self) -> int:
        """How many levels plan."""
        return 1 + len(self.above)

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
        """See `protocols.Planner`; evaluations are the steps of all levels.

        Raises:
            ValueError: if the world model has fewer levels than there are planners.
        """
        luck = self._luck(generator)
        if self._task is not modulation.goal:
            self._task = modulation.goal
            self._floors = self._begin(world_model, modulation.goal)
            self._look_around(s, modulation.goal, world_model, luck)
        here, due, spent = s, torch.ones(len(s), dtype=torch.bool, device=s.device), 0
        for floor in self._floors:
            here = floor.model.encode(here[:, None])[:, 0]
            due = floor.stand(here, due)
        costs = _Costs(self, self._floors, cost, modulation)
        for level in range(self.depth, 1, -1):
            floor = self._floors[level - 2]
            if level < self.depth:
                floor.due = floor.due | self._floors[level - 1].due
            if floor.due.any():
                spent += floor.begin(*costs.of(level), self._proposed(level), luck[level - 1])
        proposed = self._proposed(1)
        plan = self.lowest.plan(s, world_model, *costs.of(1), start if proposed is None else proposed, luck[0])
        spent += plan.evaluations
        fresh = [level for level in range(self.depth, 1, -1) if self._floors[level - 2].due.any()]
        anyone = torch.stack([floor.due for floor in self._floors]).any(0)
        for _ in range(self.refinements if fresh else 0):
            reachable = self._reachable(plan)
            for level in fresh:
                floor, (energy, asked) = self._floors[level - 2], costs.of(level)
                agreed = _Agreeing(energy, floor.model.metric, reachable[level - 2], self.agreement)
                spent += floor.search(agreed, asked, floor.planned.actions, luck[level - 1])
            again = self.lowest.plan(s, world_model, *costs.of(1), plan.actions, luck[0])
            spent += share_of(again.evaluations, anyone)
            plan = either(anyone, again, plan)
        return dataclasses.replace(plan, evaluations=spent)

    @property
    def subgoals(self) -> list[Tensor]:
        """What each level above the first wants next, [B, D'], the lowest first: for pictures."""
        return [floor.subgoal() for floor in self._floors]

    def led_by(self, leader: Planner) -> HierarchicalPlanner:
        """Level 1 and its subgoal's cost as they are, and another leader of it at the top."""
        judged = 1 if self.judged == 1 else None
        planners = {"level1": self.lowest, "level2": leader}
        return HierarchicalPlanner(planners, self.goal, self.subgoal, self.hold, self.reached, judged)

    def _luck(self, generator: Generator | None) -> list[Generator | None]:
        """A stream of random numbers for each level, so that it does not matter who else plans anew."""
        if generator is None:
            return [None] * self.depth
        seeds = torch.randint(2**62, (self.depth,), generator=generator)
        return [Generator().manual_seed(int(seed)) for seed in seeds]

    def _begin(self, world_model: Hierarchy, goal: Tensor) -> list[Floor]:
        depth = getattr(world_model, "depth", 1)
        if depth < self.depth:
            raise ValueError(
                f"planners for {self.depth} levels, but the world model has {depth}: evaluate a checkpoint "
                "that was stacked as high (train=level2), or give fewer planners"
            )
        floors = []
        for number, make in enumerate(self.above, 2):
            model = world_model.above(number)
            goal = model.encode(goal[:, None])[:, 0]
            planner = make(metric=model.metric) if callable(make) else make
            own = isinstance(planner, CostBuilder) and (self.refinements or self.judged == number)
            if own or (isinstance(planner, TreeSearch) and self.refinements):
                raise ValueError(
                    f"planner.refinements={self.refinements}, planner.judged={self.judged}, but the planner of level "
                    f"{number} minimises a cost of its own, or one step by step: choose cem or mppi for it "
                    "(planner=hierarchical)"
                )
            floors.append(Floor(model, planner, goal, self.hold, self.reached))
        return floors

    def _look_around(self, s: Tensor, goal: Tensor, world_model: Hierarchy, luck: list[Generator | None]) -> None:
        """Let planners of levels above the first scout with the level below."""
        below: WorldModel = world_model
        for floor, chance in zip(self._floors, luck[1:], strict=True):
            model = floor.model
            if isinstance(floor.planner, Scouting):
                floor.planner.scout(s, goal, below, model.encode, chance)
            s, goal, below = model.encode(s[:, None])[:, 0], floor.goal, model

    def _proposed(self, level: int) -> Tensor | None:
        """What Mode-1 would do to reach the subgoal of a level, [B, n, A]; none if nobody has learned that."""
        if level == self.depth:
            return None
        proposed = self._floors[level - 1].proposed()
        return proposed if proposed is None or level == 1 else self._floors[level - 2].model.white(proposed)

    def _reachable(self, plan: Plan) -> list[Tensor]:
        """For each level above the first, where the plan below it leads in one of its steps, [B, D']."""
        found = []
        for floor in self._floors:
            last = min(floor.model.steps, plan.states.shape[1])
            found.append(floor.model.encode(plan.states[:, last - 1 : last])[:, 0])
            plan = floor.planned
        return found


class _Costs:
    """What each level minimises at the moment."""

    def __init__(self, of: HierarchicalPlanner, floors: list[Floor], cost: Cost, modulation: Modulation) -> None:
        self.planner, self.floors, self.cost, self.modulation = of, floors, cost, modulation

    def of(self, level: int) -> tuple[Cost, Modulation]:
        """The cost of a level and its modulation."""
        own = self.modulation if level == 1 else self.modulation._replace(goal=self.floors[level - 2].goal)
        judged = level == self.planner.judged
        if level == len(self.floors) + 1:
            return (self.cost if judged else self.planner.goal(metric=self.floors[-1].model.metric)), own
        above = self.floors[level - 1]
        energy = self.planner.subgoal(lift=above.model.encode, metric=above.model.metric)
        asked = Modulation(above.subgoal())
        return (_Sum(energy, self.cost, own) if judged else energy), asked


class _Sum:
    """The cost of a subgoal, and the agent's own, whose goal stays the task's."""

    def __init__(self, energy: Cost, cost: Cost, own: Modulation) -> None:
        self.energy, self.cost, self.own = energy, cost, own

    def __call__(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        return self.energy(states, actions, modulation) + self.cost(states, actions, self.own)


class _Agreeing:
    """A level's cost, and how far its first state is from what the level below can reach, [B, D']."""

    def __init__(self, energy: Cost, metric: nn.Module, reachable: Tensor, weight: float) -> None:
        self.energy, self.metric, self.reachable, self.weight = energy, metric, reachable, weight

    def __call__(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        energy = self.energy(states, actions, modulation)
        off = (self.metric(states[:, :, :1]) - self.metric(self.reachable)[:, None, None]).square().mean(-1)
        return torch.cat([energy[..., :1] + self.weight * off, energy[..., 1:]], -1)
