"""Graph search: V(i) = min_k steps(i, k) + V(successor(i, k)) over imagined states, and what a planner does with it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from plane import GOALS, MAKE, SPACE, STARTS, Plane, plan
from torch import Generator, Tensor, nn

from lightning_jepa.actor.planners.explorer import Explorer, bellman
from lightning_jepa.actor.planners.graph import GraphSearch
from lightning_jepa.actor.planners.scouts import Scouts, farthest
from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.protocols import Planner
from lightning_jepa.types import Modulation

SHORT = partial(MAKE["cem"], samples=32, iterations=3, horizon=6)
EXPLORER = {
    "rounds": 3,
    "origins": 16,
    "walks": 8,
    "walk_steps": 10,
    "nodes": 192,
    "branches": 12,
    "branch_steps": 2,
    "colour": 2.0,
    **SPACE,
}


def graph_search(
    planner: Planner, metric: nn.Module | None = None, reach: float = 0.3, memory_mb: float = 256.0, **numbers: float
) -> GraphSearch:
    return GraphSearch(planner, partial(Explorer, **{**EXPLORER, **numbers}), metric, reach, memory_mb=memory_mb)


HERE, THERE = torch.tensor([[-3.0, -2.0], [-2.0, 0.0]]), torch.tensor([[3.0, -2.0], [4.0, 0.0]])


def control(planner: Planner, steps: int = 30) -> tuple[Tensor, Plane]:
    """Where receding-horizon control ends, planning anew after every third action."""
    model, at, modulation = Plane(wall=True), HERE, Modulation(THERE)
    generator, left = Generator().manual_seed(0), None
    for _ in range(steps // 3):
        found = planner.plan(at, model, GoalEnergy(), modulation, left, generator)
        at, left = found.states[:, 2], found.actions[:, 3:]
    return at, model


def test_graph_search_goes_around_a_wall_where_straight_distance_fails() -> None:
    straight, _ = control(SHORT())
    around, _ = control(graph_search(SHORT()))
    assert ((straight - THERE).norm(dim=-1) > 3).all()
    assert ((around - THERE).norm(dim=-1) < 1).all()


def test_the_graphs_cost_is_about_the_cost_to_go() -> None:
    cost = graph_search(SHORT()).build(HERE, Plane(wall=True), THERE, Generator().manual_seed(0))
    places = torch.tensor([[-3.0, -2.0], [-2.0, 3.0], [-1.1, 0.0], [1.1, 0.0], [2.0, 3.0]])
    corner = torch.tensor([1.0, 3.0])
    way = (places - corner * torch.tensor([-1.0, 1.0])).norm(dim=-1) + 2 + (corner - THERE[0]).norm()
    way[3:] = (places[3:] - THERE[0]).norm(dim=-1)
    found = cost(places.expand(2, 1, -1, -1), torch.zeros(2, 1, 5, 2), Modulation(THERE))[0, 0]
    assert (found > way - 1).all()
    assert (found < 1.6 * way + 1).all()
    assert cost(THERE[:, None, None], torch.zeros(2, 1, 1, 2), Modulation(THERE)).eq(0).all()
    tight = graph_search(SHORT(), memory_mb=0.001).build(HERE, Plane(wall=True), THERE, Generator().manual_seed(0))
    torch.testing.assert_close(
        tight(places.expand(2, 1, -1, -1), torch.zeros(2, 1, 5, 2), Modulation(THERE))[0, 0], found
    )


def test_the_graph_is_built_once_for_each_goal_and_counted() -> None:
    planner, model = graph_search(SHORT()), Plane()
    own, modulation = 32 * 3 * 6, Modulation(GOALS)
    first = planner.plan(STARTS, model, GoalEnergy(), modulation)
    assert first.evaluations == planner.explorer.evaluations + own == model.steps
    assert planner.plan(STARTS, model, GoalEnergy(), modulation).evaluations == own
    assert planner.plan(STARTS, model, GoalEnergy(), Modulation(GOALS.clone())).evaluations == first.evaluations


def test_the_graph_leaves_room_for_gradients() -> None:
    found = plan(graph_search(MAKE["gradient"](), reach=1.0))
    assert ((found.states[:, -1] - GOALS).norm(dim=-1) < 1.5).all()


def test_the_graph_measures_in_the_space_of_the_metric() -> None:
    class Doubled(nn.Module):
        def forward(self, s: Tensor) -> Tensor:
            return torch.cat([2 * s, torch.zeros_like(s)], -1)

    plain, doubled = (
        graph_search(SHORT(), metric=metric).build(HERE, Plane(), THERE, Generator().manual_seed(0))
        for metric in (None, Doubled())
    )
    torch.testing.assert_close(doubled.graph.unit, 2 * plain.graph.unit, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(doubled.to_go.mean(), plain.to_go.mean(), atol=0.5, rtol=0.1)


def test_a_goal_that_nothing_leads_to_is_still_approached() -> None:
    class Closed(Plane):
        def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
            side = s[:, None, None, :1].sign()
            states = super().rollout(s, actions)
            return torch.cat([states[..., :1].abs().clamp_min(0.5) * side, states[..., 1:]], -1)

    cost = graph_search(SHORT()).build(HERE, Closed(), THERE, Generator().manual_seed(0))
    assert torch.isfinite(cost.to_go).all()
    near, far = torch.tensor([-1.0, 0.0]), torch.tensor([-6.0, 0.0])
    places = torch.stack([near, far]).expand(2, 1, 2, 2)
    energy = cost(places, torch.zeros(2, 1, 2, 2), Modulation(THERE))[:, 0]
    assert (energy[:, 0] < energy[:, 1]).all()


@pytest.mark.parametrize(
    "wrong", [{"nodes": 15}, {"nodes": 16 * 8 * 10 + 1}, {"rounds": 0}, {"branches": 1}, {"colour": 9}], ids=str
)
def test_graph_numbers_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"planner.{next(iter(wrong))}=.*expected"):
        graph_search(SHORT(), **wrong)


def test_farthest_points_cover_the_rest() -> None:
    points = torch.rand(3, 200, 2, generator=Generator().manual_seed(0))
    chosen, spacing = farthest(points, 20)
    rest = torch.cdist(points, points[torch.arange(3)[:, None], chosen]).amin(-1).amax(1)
    torch.testing.assert_close(spacing, rest)
    assert (chosen[:, 0] == 0).all()
    assert all(len(set(row.tolist())) == 20 for row in chosen)


def test_relaxation_needs_two_moves_that_lead_on() -> None:
    """A chain 3 -> 2 -> 1 -> 0 whose nodes have three moves, a short one that no other confirms, and a dead end."""
    successor = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 1, 0], [2, 2, 1], [4, 4, 0]])[..., None]
    edge = torch.tensor([[1.0, 1, 1], [2, 3, 1], [1, 1, 1], [1, 4, 1], [1, 1, 1]])[..., None]
    known = torch.tensor([[0.0, torch.inf, torch.inf, torch.inf, torch.inf]]).T
    # 1: 1, 2 and 3 steps to 0 or back. 2: one step to 0, unconfirmed; else 1 + V(1). 3: 1 + V(2). 4: unconfirmed.
    found = bellman(successor, edge, known, torch.ones_like(edge))
    assert found.to_go[:, 0].tolist() == [0, 3, 4, 5, torch.inf]
    assert set(found.moves[3, 0].tolist()) == {0, 2}
    assert found.moves[1, 0].tolist() == [0, 1]


def test_each_goal_has_a_column() -> None:
    """The same chain with goals at both ends; every move leads one node on or back, twice each."""
    successor = torch.tensor([[0, 0, 1, 1], [0, 0, 2, 2], [1, 1, 3, 3], [2, 2, 3, 3]])[..., None]
    edge = torch.ones(4, 4, 1)
    known = torch.full((4, 2), torch.inf)
    known[0, 0] = known[3, 1] = 0
    assert bellman(successor, edge, known, edge).to_go.tolist() == [[0, 3], [1, 2], [2, 1], [3, 0]]


def test_what_comes_later_counts_less() -> None:
    """V(i) = edge + gamma ** steps V(j)."""
    successor = torch.tensor([[0, 0], [0, 0], [1, 1]])[..., None]
    edge, known = torch.ones(3, 2, 1), torch.tensor([[0.0], [torch.inf], [torch.inf]])
    assert bellman(successor, edge, known, 0.5 * edge).to_go[:, 0].tolist() == [0, 1, 1.5]


def test_of_the_places_that_a_move_passes_the_best_one_counts() -> None:
    """Equation: min over l, before the second least over k."""
    successor = torch.tensor([[[0, 0], [0, 0]], [[1, 0], [0, 1]]])
    edge = torch.tensor([[[1.0, 2], [1, 2]], [[1, 2], [3, 1]]])
    known = torch.tensor([[0.0], [torch.inf]])
    assert bellman(successor, edge, known, torch.ones_like(edge)).to_go[:, 0].tolist() == [0, 3]


def test_what_was_no_way_costs_more_where_it_failed_alone() -> None:
    """Edges beside a barred move cost a setback more, in that episode."""
    cost = graph_search(SHORT()).build(HERE, Plane(), THERE, Generator().manual_seed(0))
    before = cost.to_go.clone()
    cost.bar(HERE, THERE, torch.tensor([True, False]))
    assert (cost.to_go[0] >= before[0]).all()
    assert (cost.to_go[0] > before[0]).any()
    assert torch.equal(cost.to_go[1], before[1])
    cost.stand(HERE)
    ends = torch.stack([THERE, HERE], 1)[:, :, None]
    setbacks = cost(ends, torch.zeros_like(ends), Modulation(THERE))[..., 0]
    cost.stand(HERE + 100)
    elsewhere = cost(ends, torch.zeros_like(ends), Modulation(THERE))[..., 0]
    torch.testing.assert_close(setbacks - elsewhere, torch.tensor([[cost.setback, 0.0], [0.0, 0.0]]))


def test_what_is_nearer_than_nodes_are_to_each_other_was_reached() -> None:
    """Imagined states lie about as far off what is seen: no way of that length is held against an edge."""
    cost = graph_search(SHORT()).build(HERE, Plane(), THERE, Generator().manual_seed(0))
    before = cost.to_go.clone()
    step = cost.graph.spacing[:, None] * torch.tensor([1.0, 0.0])
    cost.bar(HERE, HERE + 0.9 * step, torch.tensor([True, True]))
    assert torch.equal(cost.to_go, before)
    cost.bar(HERE, HERE + 3 * step, torch.tensor([True, True]))
    assert not torch.equal(cost.to_go, before)


def test_where_no_move_leads_on_it_costs_more_to_be() -> None:
    """In that episode alone, and not where the goal is near."""
    cost = graph_search(SHORT()).build(HERE, Plane(), THERE, Generator().manual_seed(0))
    before = cost.to_go.clone()
    cost.stuck(HERE, THERE, torch.tensor([True, True]))
    assert torch.equal(cost.to_go, before)  # the plan leads on
    cost.stuck(THERE, THERE, torch.tensor([True, True]))
    assert torch.equal(cost.to_go, before)  # there is nothing to reach
    cost.stuck(HERE, HERE, torch.tensor([True, False]))
    assert torch.equal(cost.to_go[1], before[1])
    assert (cost.to_go[0] >= before[0]).all()
    around = torch.stack([HERE, HERE + 0.2, HERE + 0.5], 1)[:, :, None]
    shunned = cost(around, torch.zeros_like(around), Modulation(THERE))[..., 0]
    setback, cost.setback = cost.setback, 0.0
    alone = cost(around, torch.zeros_like(around), Modulation(THERE))[..., 0]
    torch.testing.assert_close(shunned - alone, torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]) * setback)


def test_scouts_need_a_level_below() -> None:
    planner = GraphSearch(
        SHORT(),
        partial(Explorer, **EXPLORER),
        None,
        scouts=Scouts(rounds=1, origins=16, walks=8, walk_steps=4, kept=12, **SPACE),
    )
    with pytest.raises(ValueError, match="scouts walk on the level below"):
        planner.build(HERE, Plane(), THERE)


@pytest.mark.parametrize("typical", [0.0, 1.0])
def test_a_step_is_a_quantile_of_the_moves(typical: float) -> None:
    with pytest.raises(ValueError, match=f"planner.typical={typical}: give a quantile between 0 and 1"):
        graph_search(SHORT(), typical=typical)
    found = [
        graph_search(SHORT(), typical=share).build(HERE, Plane(wall=True), THERE, Generator().manual_seed(0)).graph.unit
        for share in (0.3, 0.9)
    ]
    assert (found[0] < found[1]).all()
    torch.testing.assert_close(found[1], torch.ones(2), atol=0.05, rtol=0.0)  # moves are at full speed
