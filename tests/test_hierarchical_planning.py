"""Hierarchical Mode-2: plans go top-down, by subgoals (paper section 4.7)."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from plane import SPACE, Plane
from torch import Generator, Tensor, nn

from lightning_jepa.actor.planners.cem import CEM
from lightning_jepa.actor.planners.explorer import Explorer
from lightning_jepa.actor.planners.graph import GraphSearch
from lightning_jepa.actor.planners.hierarchical import HierarchicalPlanner
from lightning_jepa.actor.planners.mppi import MPPI
from lightning_jepa.actor.planners.reactive import Reactive
from lightning_jepa.actor.planners.scouts import Scouts
from lightning_jepa.actor.planners.tree import TreeSearch
from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.cost.subgoal import SubgoalEnergy
from lightning_jepa.types import Modulation


class Far(nn.Module):
    """Level 2 of the plane: one step of it is `steps` steps in the same direction."""

    action_size = 2

    def __init__(self, plane: Plane, steps: int = 4) -> None:
        super().__init__()
        self.plane, self.steps, self.metric = plane, steps, nn.Identity()
        self.reach: Any = None

    def white(self, actions: Tensor) -> Tensor:
        return actions

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        return observations

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        path = self.plane.rollout(s, actions.repeat_interleave(self.steps, 2))
        self.plane.steps -= (self.steps - 1) * actions.shape[1] * actions.shape[2]  # one evaluation each
        return path[:, :, self.steps - 1 :: self.steps]


class TwoLevels(Plane):
    """The plane with its second level."""

    depth = 2

    def above(self, number: int) -> Far:
        assert number == 2
        return Far(self)


class ThreeLevels(TwoLevels):
    """The plane with a third level."""

    depth = 3

    def above(self, number: int) -> Far:
        return Far(self, 2)


def planner(**given: Any) -> HierarchicalPlanner:
    low = CEM(samples=32, iterations=3, elites=6, horizon=4, **SPACE)
    high = CEM(samples=512, iterations=4, elites=24, horizon=5, **SPACE)
    return HierarchicalPlanner({"level1": low, "level2": high}, GoalEnergy, SubgoalEnergy, **given)


def walked(
    of: Any, steps: int, start: Tensor, goal: Tensor, model: TwoLevels | None = None
) -> tuple[Tensor, TwoLevels, int]:
    """Where an agent gets that takes two actions of each plan; the world model, and the evaluations it was told."""
    model, generator, modulation, s, spent = (
        model or TwoLevels(wall=True),
        Generator().manual_seed(0),
        Modulation(goal),
        start,
        0,
    )
    for _ in range(steps // 2):
        plan = of.plan(s, model, GoalEnergy(), modulation, None, generator)
        spent += plan.evaluations
        s = plan.states[:, 1]
    return s, model, spent


def searching_a_graph(metric: nn.Module) -> GraphSearch:
    """Few nodes, and moves of all lengths from each."""
    numbers = {"rounds": 4, "origins": 32, "walks": 16, "walk_steps": 6, "nodes": 100, "branches": 24}
    explorer = partial(Explorer, **numbers, branch_steps=1, slowest=0.0, **SPACE)
    low = CEM(samples=64, iterations=3, elites=8, horizon=3, **SPACE)
    return GraphSearch(low, explorer, metric)


def sending_scouts(metric: nn.Module) -> GraphSearch:
    """The same, among states that the level below has found."""
    made = searching_a_graph(metric)
    made.scouts = Scouts(rounds=4, origins=32, walks=4, walk_steps=16, kept=12, **SPACE)
    return made


ABOVE: dict[str, Any] = {
    "cem": CEM(samples=512, iterations=4, elites=24, horizon=5, **SPACE),
    "mppi": MPPI(samples=512, iterations=6, horizon=5, **SPACE),
    "graph": searching_a_graph,
    "scouted graph": sending_scouts,
}


@pytest.mark.parametrize("high", ABOVE)
def test_subgoals_lead_around_a_wall_that_stops_a_short_sight(high: str) -> None:
    """Behind a wall whose door is at y in (3, 5): four steps ahead the way to it looks like a detour."""
    start, goal = torch.tensor([[-3.0, 0.0], [-2.0, -0.5]]), torch.tensor([[3.0, 0.0], [3.0, 1.0]])
    low = CEM(samples=32, iterations=3, elites=6, horizon=4, **SPACE)
    of = HierarchicalPlanner({"level1": low, "level2": ABOVE[high]}, GoalEnergy, SubgoalEnergy, hold=1)
    found, model, spent = walked(of, 32, start, goal)
    short, _, _ = walked(CEM(samples=32, iterations=3, elites=6, horizon=4, **SPACE), 24, start, goal)
    assert (short[:, 0] < -0.9).all()
    assert ((found - goal).norm(dim=-1) < 1).all()
    assert spent == model.steps


def test_a_level_may_search_a_tree_over_macro_actions() -> None:
    """Expectimax over four directions above, CEM below: around the wall, as with CEM above."""

    class Branching(TwoLevels):
        def above(self, number: int) -> Far:
            far = super().above(number)

            def outcomes(s: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
                return far.rollout(s, actions[:, None, None])[:, 0], torch.ones(len(s), 1)

            far.outcomes = outcomes  # type: ignore[assignment]
            return far

    tree = TreeSearch([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], 4, 400, most=200.0)
    low = CEM(samples=32, iterations=3, elites=6, horizon=4, **SPACE)
    of = HierarchicalPlanner({"level1": low, "level2": tree}, GoalEnergy, SubgoalEnergy)
    start, goal = torch.tensor([[-3.0, 0.0]]), torch.tensor([[3.0, 0.0]])
    found, _, _ = walked(of, 32, start, goal, Branching(wall=True))
    assert ((found - goal).norm(dim=-1) < 2.5).all()


def test_a_level_in_mode_1_does_what_reaches_the_subgoal_without_a_search() -> None:
    class Known(TwoLevels):
        def above(self, number: int) -> Far:
            far = super().above(number)
            far.reach = lambda s, wanted: ((wanted - s) / far.steps)[:, None].expand(-1, far.steps, -1)
            return far

    start, goal = torch.tensor([[-5.0, 4.0]]), torch.tensor([[5.0, 4.0]])
    high = CEM(samples=512, iterations=4, elites=24, horizon=5, **SPACE)
    of = HierarchicalPlanner({"level1": Reactive(4, 1.0), "level2": high}, GoalEnergy, SubgoalEnergy)
    model, generator = Known(), Generator().manual_seed(0)
    found = of.plan(start, model, GoalEnergy(), Modulation(goal), None, generator)
    assert torch.allclose(found.states[:, -1], of.subgoals[0], atol=1e-5)
    assert found.evaluations == model.steps == 512 * 4 * 5 + 4
    searching = planner()
    searching.plan(start, model, GoalEnergy(), Modulation(goal), None, Generator().manual_seed(0))
    assert torch.equal(searching.subgoals[0], of.subgoals[0])
    with pytest.raises(ValueError, match="what a policy proposes, and there is none"):
        of.plan(start, TwoLevels(), GoalEnergy(), Modulation(goal + 0), None, generator)


def test_mode_1_of_a_level_above_proposes_in_the_terms_of_the_planner_below() -> None:
    class ThreeLevels(TwoLevels):
        depth = 3

        def above(self, number: int) -> Far:
            far = Far(self, 2)
            if number == 3:
                far.reach = lambda s, wanted: (wanted - s)[:, None].expand(-1, 2, -1)
            far.white = lambda actions: actions + 100  # type: ignore[method-assign]
            return far

    class Noting(Reactive):
        def plan(self, s: Tensor, world_model: Any, *rest: Any) -> Any:
            noted.append(rest[2])
            return super().plan(s, world_model, *rest)

    noted: list[Tensor] = []
    low = CEM(samples=8, iterations=1, elites=2, horizon=3, **SPACE)
    of = HierarchicalPlanner({"level1": low, "level2": Noting(3, 1.0), "level3": low}, GoalEnergy, SubgoalEnergy)
    start = torch.zeros(1, 2)
    of.plan(start, ThreeLevels(), GoalEnergy(), Modulation(torch.ones(1, 2)), None, Generator().manual_seed(0))
    assert torch.allclose(noted[0], (of.subgoals[1] - start)[:, None].expand(-1, 2, -1) + 100)


def test_a_subgoal_is_held_until_it_is_reached_or_proves_out_of_reach() -> None:
    """In two episodes side by side: who stands at the subgoal gets another one, who does not, after `hold` plans."""
    start, goal = torch.tensor([[-5.0, 4.0], [-5.0, 0.0]]), torch.tensor([[5.0, 4.0], [5.0, 0.0]])
    of, generator, modulation, model = planner(hold=4), Generator().manual_seed(0), Modulation(goal), TwoLevels()
    first = of.plan(start, model, GoalEnergy(), modulation, None, generator)
    (subgoal,) = of.subgoals
    again = of.plan(start, model, GoalEnergy(), modulation, None, generator)
    assert torch.equal(of.subgoals[0], subgoal)
    low, high = 32 * 3 * 4, 512 * 4 * 5
    assert (first.evaluations, again.evaluations) == (low + high, low)
    there = torch.stack([subgoal[0], start[1]])
    third = of.plan(there, model, GoalEnergy(), modulation, None, generator)
    assert third.evaluations == low + high // 2
    assert (of.subgoals[0][0] - goal[0]).norm() < (subgoal[0] - goal[0]).norm()
    assert torch.equal(of.subgoals[0][1], subgoal[1])
    of.plan(there, model, GoalEnergy(), modulation, None, generator)
    assert torch.equal(of.subgoals[0][1], subgoal[1])
    of.plan(there, model, GoalEnergy(), modulation, None, generator)
    assert not torch.equal(of.subgoals[0][1], subgoal[1])  # four plans, and not reached
    of.plan(subgoal, model, GoalEnergy(), Modulation(start), None, generator)
    assert ((of.subgoals[0] - start).norm(dim=-1) < (subgoal - start).norm(dim=-1)).all()  # another goal: another plan


class Counting:
    """A planner that says how often it was asked, and for what."""

    def __init__(self, of: CEM) -> None:
        self.of, self.horizon, self.action_bound = of, of.horizon, of.action_bound
        self.costs: list[Any] = []

    def plan(self, s: Tensor, world_model: Any, cost: Any, modulation: Modulation, start: Any, generator: Any) -> Any:
        self.costs.append((cost, modulation))
        return self.of.plan(s, world_model, cost, modulation, start, generator)


def test_each_level_plans_once_for_some_plans_of_the_level_below() -> None:
    names = ("level1", "level2", "level3")
    counting = {name: Counting(CEM(samples=8, iterations=1, elites=2, horizon=3, **SPACE)) for name in names}
    of = HierarchicalPlanner(counting, GoalEnergy, SubgoalEnergy, hold=2)
    model, modulation = ThreeLevels(), Modulation(torch.ones(1, 2))
    for _ in range(8):
        of.plan(torch.zeros(1, 2), model, GoalEnergy(), modulation, None, Generator().manual_seed(0))
    assert [len(counting[name].costs) for name in names] == [8, 4, 2]


def test_another_subgoal_from_above_is_another_plan_below() -> None:
    """Level 3's is reached before level 2 would plan anew."""

    names = ("level1", "level2", "level3")
    counting = {name: Counting(CEM(samples=8, iterations=1, elites=2, horizon=3, **SPACE)) for name in names}
    of = HierarchicalPlanner(counting, GoalEnergy, SubgoalEnergy, hold=4)
    model, modulation = ThreeLevels(), Modulation(torch.tensor([[5.0, 4.0]]))
    of.plan(torch.tensor([[-5.0, 4.0]]), model, GoalEnergy(), modulation, None, Generator().manual_seed(0))
    of.plan(of.subgoals[1], model, GoalEnergy(), modulation, None, Generator().manual_seed(0))
    assert [len(counting[name].costs) for name in names] == [2, 2, 2]
    assert torch.equal(counting["level2"].costs[1][1].goal, of.subgoals[1])


def test_levels_above_wait_for_their_own_episode() -> None:
    """Three levels, two episodes, one of which stands still: what it does is what it does alone."""

    def subgoals(rows: list[int]) -> list[Tensor]:
        level = partial(CEM, iterations=2, elites=4, horizon=3, **SPACE)
        planners = {f"level{number}": level(samples=16 * number) for number in (1, 2, 3)}
        of, generator = HierarchicalPlanner(planners, GoalEnergy, SubgoalEnergy, hold=3), Generator().manual_seed(0)
        modulation, found = Modulation(torch.tensor([[5.0, 4.0], [5.0, 0.0]])[rows]), []
        s = torch.tensor([[-5.0, 4.0], [-5.0, 0.0]])[rows]
        for step in range(9):
            plan = of.plan(s, ThreeLevels(), GoalEnergy(), modulation, None, generator)
            found.append(torch.stack([one[-1] for one in of.subgoals]))
            s = torch.where(torch.tensor(rows)[:, None] == 0, plan.states[:, 1 + step % 2], s)
        return found

    assert all(
        torch.allclose(one, other, atol=1e-5) for one, other in zip(subgoals([0, 1]), subgoals([1]), strict=True)
    )


def test_refinement_makes_levels_agree() -> None:
    """a2 = argmin sum C(s2) + |s2[1] - s[n]|^2: where level 2 asks for too much, it asks for what can be reached."""

    class Slow(TwoLevels):
        def above(self, number: int) -> Far:
            return Far(self, 8)  # level 2 believes in twice the speed of level 1

    def subgoal(refinements: int) -> tuple[float, int, int]:
        of, model = planner(refinements=refinements, agreement=50.0), Slow()
        start, goal = torch.tensor([[-5.0, 4.0]]), torch.tensor([[5.0, 4.0]])
        plan = of.plan(start, model, GoalEnergy(), Modulation(goal), None, Generator().manual_seed(0))
        return float((of.subgoals[0] - start).norm()), plan.evaluations, model.steps

    alone, spent, _ = subgoal(0)
    agreed, more, made = subgoal(2)
    assert alone > 5
    assert agreed < 4.5  # in four steps level 1 comes 4 far
    assert more == made == 3 * spent


@pytest.mark.parametrize("judged", [1, 2])
def test_the_agents_own_cost_is_that_of_one_level(judged: int) -> None:
    """C(s2) at the top, C(s; s2[1]) + C(s) below: here what is judged is to stay below y = 0."""

    class Keen:
        def __call__(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
            energy = 100 * states[..., 1].clamp_min(0)
            return energy + GoalEnergy()(states, actions, modulation) if judged == 2 else energy

    start, goal = torch.tensor([[-3.0, -1.0]]), torch.tensor([[3.0, 2.0]])
    of, generator, modulation, s = planner(judged=judged), Generator().manual_seed(0), Modulation(goal), start
    for _ in range(8):
        s = of.plan(s, TwoLevels(), Keen(), modulation, None, generator).states[:, 1]
    assert float(s[0, 0]) > 2
    assert float(s[0, 1]) < 0.3
    assert (float(of.subgoals[0][0, 1]) < 0.3) is (judged == 2)


def test_planners_that_do_not_fit_are_refused() -> None:
    low = CEM(samples=4, iterations=1, elites=2, horizon=4, **SPACE)
    with pytest.raises(ValueError, match=r"has \['level1'\]: give one for each level, level1, level2"):
        HierarchicalPlanner({"level1": low}, GoalEnergy, SubgoalEnergy)
    with pytest.raises(ValueError, match="level1 lacks its metric"):
        HierarchicalPlanner({"level1": partial(CEM), "level2": low}, GoalEnergy, SubgoalEnergy)
    with pytest.raises(ValueError, match=r"refinements=-1, planner\.judged=None: give 0 or more"):
        planner(refinements=-1)
    with pytest.raises(ValueError, match=r"judged=3: give 0 or more, and one of the 2 levels"):
        planner(judged=3)
    explorer = partial(
        Explorer, rounds=1, origins=1, walks=1, walk_steps=4, nodes=2, branches=2, branch_steps=1, **SPACE
    )
    high, given = GraphSearch(low, explorer, None), ({"refinements": 1}, {"judged": 2})
    for unheard in given:
        with pytest.raises(ValueError, match="planner of level 2 minimises a cost of its own"):
            HierarchicalPlanner({"level1": low, "level2": high}, GoalEnergy, SubgoalEnergy, **unheard).plan(
                torch.zeros(1, 2), TwoLevels(), GoalEnergy(), Modulation(torch.zeros(1, 2))
            )
    with pytest.raises(ValueError, match="planners for 2 levels, but the world model has 1"):
        planner().plan(torch.zeros(1, 2), Plane(), GoalEnergy(), Modulation(torch.zeros(1, 2)))


class Open(Plane):
    """The plane within its bounds, and no wall."""

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        return super().rollout(s, actions).clamp(-6, 6)


class Overlooked(TwoLevels):
    """The plane, whose second level does not know of the wall."""

    def above(self, number: int) -> Far:
        return Far(Open())


@pytest.mark.parametrize("setback", [10.0, 1e-6], ids=["remembered", "forgotten"])
def test_a_way_that_fails_is_not_tried_for_ever(setback: float) -> None:
    """What level 2 takes for a way ends at the wall; the door is at y in (3, 5)."""
    start, goal = torch.tensor([[-3.0, 0.0], [-2.0, -0.5]]), torch.tensor([[3.0, 0.0], [3.0, 1.0]])
    low = CEM(samples=32, iterations=3, elites=6, horizon=4, **SPACE)

    def high(metric: nn.Module) -> GraphSearch:
        made = searching_a_graph(metric)
        made.setback = setback
        return made

    of = HierarchicalPlanner({"level1": low, "level2": high}, GoalEnergy, SubgoalEnergy)
    found, _, _ = walked(of, 120, start, goal, Overlooked(wall=True))
    assert (found[:, 0] > 0.9).all() == (setback > 1)
