"""Tree search against exact expectimax: V(s) = min_a sum_m p_m (C(s_m) + discount V(s_m))."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_jepa.actor.planners.tree import Node, TreeSearch
from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.cost.speed_bound import SpeedBound
from lightning_jepa.types import Modulation

MOST = 1.0


class Table:
    """A random enumerable world: from each of its states every action leads to one of a few others."""

    def __init__(self, seed: int, states: int = 6, actions: int = 3, outcomes: int = 2) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (states, actions, outcomes)
        self.following = torch.randint(states, shape, generator=generator)
        self.chances = torch.rand(shape, generator=generator).softmax(-1)
        self.cost = torch.rand(states, generator=generator) * MOST
        self.evaluations = 0

    def outcomes(self, s: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        at, do = s[:, 0].long(), actions[:, 0].long()
        self.evaluations += len(s)
        return self.following[at, do][..., None].float(), self.chances[at, do]

    def __call__(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        return self.cost[states[..., 0].long()]

    def expectimax(self, state: int, left: int, discount: float) -> list[float]:
        """Q of each action."""
        if left == 0:
            return [0.0]
        found = []
        for chances, following in zip(self.chances[state], self.following[state], strict=True):
            ahead = [self.cost[j] + discount * min(self.expectimax(int(j), left - 1, discount)) for j in following]
            found.append(float((chances * torch.tensor(ahead)).sum()))
        return found


def search(actions: int = 3, depth: int = 3, simulations: int = 400, **more: Any) -> TreeSearch:
    return TreeSearch([[float(k)] for k in range(actions)], depth, simulations, most=MOST, **more)


def planned(table: Table, planner: TreeSearch, states: list[int]) -> Any:
    s = torch.tensor(states, dtype=torch.float32)[:, None]
    return planner.plan(s, table, table, Modulation(s))  # type: ignore[arg-type]  # a table is all that is needed


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), discount=st.sampled_from([1.0, 0.9]), depth=st.integers(1, 4))
def test_with_enough_budget_it_is_expectimax(seed: int, discount: float, depth: int) -> None:
    table = Table(seed)
    found = planned(table, search(depth=depth, discount=discount, simulations=800), [0, 3])
    for row, state in enumerate((0, 3)):
        exact = table.expectimax(state, depth, discount)
        assert float(found.cost[row]) == pytest.approx(min(exact), abs=1e-5)
        assert exact[int(found.actions[row, 0, 0])] == pytest.approx(min(exact), abs=1e-5)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), simulations=st.integers(1, 60))
def test_bounds_hold_and_the_best_action_is_never_pruned(seed: int, simulations: int) -> None:
    """low <= V <= high at every budget, and no other action's upper bound is below the best one's value."""
    table = Table(seed)
    planner = search(simulations=simulations)
    planned(table, planner, [0])
    exact = table.expectimax(0, 3, 1.0)
    best = exact.index(min(exact))
    root = planner.roots[0]
    assert root.low - 1e-5 <= min(exact) <= root.high + 1e-5
    for k, branch in root.branches.items():
        assert branch.low - 1e-5 <= exact[k] <= branch.high + 1e-5
        assert k == best or branch.high >= min(exact) - 1e-5


def test_every_action_is_tried_once_before_any_is_visited_twice() -> None:
    for simulations in (3, 5, 20):
        planner = search(simulations=simulations)
        planned(Table(0), planner, [0])
        nodes = [planner.roots[0]]
        while nodes:
            node = nodes.pop()
            children = [child for branch in node.branches.values() for child in branch.children]
            grown = any(child.branches for child in children)
            assert len(node.branches) == 3 or not grown
            nodes += children


def test_nodes_widen_where_the_budget_is_below_the_actions() -> None:
    planner = search(actions=40, simulations=30)
    planned(Table(0, actions=40), planner, [0])
    root = planner.roots[0]
    assert len(root.branches) <= 6  # ceil(sqrt(30))
    assert any(child.branches for branch in root.branches.values() for child in branch.children)


def test_a_lower_bound_saves_visits_and_changes_nothing() -> None:
    """With the exact cost to come as the bound, all that is not the best is pruned at once."""
    table, spent = Table(3, states=8), []
    exact = {left: torch.tensor([min(table.expectimax(i, left, 1.0)) for i in range(8)]) for left in range(4)}

    def bound(states: Tensor, goals: Tensor, left: int, discount: float) -> Tensor:
        return exact[left][states[:, 0].long()]

    for planner in (search(), search(bound=bound)):
        table.evaluations = 0
        found = planned(table, planner, [0])
        spent.append(table.evaluations)
        assert float(found.cost[0]) == pytest.approx(float(exact[3][0]), abs=1e-5)
    assert spent[1] < spent[0]


def test_it_stops_when_nothing_open_could_change_the_answer() -> None:
    table = Table(1)
    planned(table, search(depth=1, simulations=1000), [0, 1])
    assert table.evaluations == 2 * 3


def test_the_critic_speaks_where_a_plan_ends() -> None:
    """Costs hold the critic's part in the last entry of a sequence: on the way it does not count."""

    class Judged(Table):
        def __call__(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
            cost = super().__call__(states, actions, modulation)
            return torch.cat([cost[..., :-1], cost[..., -1:] + 10], -1)

    planner = TreeSearch([[0.0], [1.0], [2.0]], 2, 400, most=11.0)
    plain, judged = (planned(kind(5), planner, [0]).cost for kind in (Table, Judged))
    assert float(judged) == pytest.approx(float(plain) + 10, abs=1e-4)


class Slippery:
    """A plane in which a step is made with a chance of .8."""

    def outcomes(self, s: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        return torch.stack([s + actions, s], 1), torch.tensor([[0.8, 0.2]]).expand(len(s), -1)


@pytest.mark.parametrize("width", [None, 2.0])
@pytest.mark.parametrize("discount", [1.0, 0.5])
def test_a_latent_speed_bounds_the_goals_energy_and_changes_nothing(width: float | None, discount: float) -> None:
    """sum discount^(t-1) u IC(max(0, d - t speed)) <= V(s): the same plans for fewer model steps."""
    slippery: Any = Slippery()
    energy, around, u = GoalEnergy(width=width), [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], 0.3
    bound, spent = SpeedBound(energy, 1.0, weight=u), {None: 0, "speed": 0}

    def cost(states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        return u * energy(states, actions, modulation)

    for place in torch.randn(12, 2, generator=torch.Generator().manual_seed(0)) * 4:
        s, goal, found = torch.zeros(1, 2), place[None], {}
        for name, below in ((None, None), ("speed", bound)):
            planner = TreeSearch(around, 3, 3000, most=100.0 if width is None else u, discount=discount, bound=below)
            found[name] = planner.plan(s, slippery, cost, Modulation(goal))
            spent[name] += found[name].evaluations
        assert torch.allclose(found["speed"].cost, found[None].cost, atol=1e-5)
        assert torch.equal(found["speed"].actions[0, 0], found[None].actions[0, 0])
        assert (bound(s, goal, 3, discount) <= found[None].cost + 1e-5).all()
    far = torch.tensor([[5.0, 1.0]])
    one = sum(discount**t * u * float(energy.at((26**0.5 - 1 - t) ** 2 * torch.ones(()), 2)) for t in range(3))
    assert float(bound(torch.zeros(1, 2), far, 3, discount)) == pytest.approx(one, rel=1e-4)
    assert spent["speed"] < 0.9 * spent[None]
    with pytest.raises(ValueError, match="give a speed above 0"):
        SpeedBound(energy, 0.0)


def test_a_bound_that_is_none_is_found_out() -> None:
    """One of another cost, here three times as dear."""
    slippery: Any = Slippery()
    energy, s, goal = GoalEnergy(), torch.zeros(1, 2), torch.tensor([[4.0, 0.0]])
    planner = TreeSearch([[1.0, 0.0], [-1.0, 0.0]], 2, 100, most=100.0, bound=SpeedBound(energy, 1.0, weight=3.0))
    with pytest.raises(ValueError, match=r"planner\.bound said that .* at least is to come"):
        planner.plan(s, slippery, energy, Modulation(goal))


def test_a_bound_holds_at_the_root_too() -> None:
    """After an action that attains it nothing can be gained, and nothing else is tried."""
    table = Table(3, states=8)
    values = table.expectimax(0, 1, 1.0)
    exact, order = min(values), sorted(range(3), key=values.__getitem__)
    planner = TreeSearch(
        [[float(k)] for k in order], 1, 10, most=MOST, bound=lambda s, g, left, discount: torch.full((len(s),), exact)
    )
    found = planned(table, planner, [0])
    assert (float(found.cost[0]), table.evaluations) == (pytest.approx(exact, abs=1e-6), 1)


@pytest.mark.parametrize(
    ("price", "message"),
    [(float("nan"), "not finite"), (-0.1, "a step costs -0.1"), (2.0, r"a step costs 2, .* raise planner.most")],
)
def test_a_cost_beyond_the_bounds_is_refused(price: float, message: str) -> None:
    """Else the search would prune what is best."""
    table = Table(0)
    table.cost[:] = price
    with pytest.raises(ValueError, match=message):
        planned(table, search(), [0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"actions": 1}, "two or more actions"),
        ({"depth": 0}, "depth"),
        ({"simulations": 0}, "simulations"),
        ({"discount": 0.0}, "discount"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(**arguments)


def test_a_node_is_as_good_as_its_best_action() -> None:
    node = Node(torch.zeros(1), 0, 0.5, 9.0)
    node.update(2)
    assert (node.low, node.high) == (0.5, 9.0)
