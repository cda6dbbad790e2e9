"""Planners minimise F(a) = sum_t C(s[t]) over action sequences, in a small world whose dynamics are written down.

The world: a point in the plane, s[t+1] = s[t] + a[t]; with a wall, the room is a box and moves into |x| < 1 are not
made, except through a door at y in (3, 5).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from lightning_jepa.actor.planners.cem import CEM
from lightning_jepa.actor.planners.gradient import Gradient
from lightning_jepa.actor.planners.graph import GraphSearch, farthest, steps_to_go
from lightning_jepa.actor.planners.icem import ICEM
from lightning_jepa.actor.planners.mppi import MPPI
from lightning_jepa.actor.planners.shooting import Search, coloured_noise, project, warm_start
from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.protocols import Cost, Planner, WorldModel
from lightning_jepa.types import Modulation, Plan

SPACE = {"action_size": 2, "action_bound": 1.0}
MAKE: dict[str, Callable[..., Planner]] = {
    "cem": partial(CEM, samples=64, iterations=4, elites=8, horizon=12, **SPACE),
    "icem": partial(ICEM, samples=64, iterations=4, elites=8, kept=4, horizon=12, **SPACE),
    "mppi": partial(MPPI, samples=64, iterations=4, horizon=12, **SPACE),
    "gradient": partial(Gradient, restarts=8, iterations=20, horizon=12, **SPACE),
}
STARTS = torch.tensor([[-6.0, -3.0], [-2.0, 5.0], [-8.0, 0.0], [-1.0, -1.0]])
GOALS = torch.tensor([[-2.0, 2.0], [-7.0, 1.0], [-1.5, 0.0], [-4.0, -3.0]])
every_planner = pytest.mark.parametrize("name", list(MAKE))


class Plane(nn.Module):
    """A world model that also counts the steps it makes for each episode; `gain` is a parameter that stays 1."""

    def __init__(self, wall: bool = False) -> None:
        super().__init__()
        self.gain, self.wall, self.steps = nn.Parameter(torch.ones(())), wall, 0

    def encode(self, observations: Tensor) -> Tensor:
        return observations.flatten(2).float()

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        self.steps += actions.shape[1] * actions.shape[2]
        at, path = s[:, None].expand(-1, actions.shape[1], -1), []
        for action in actions.unbind(2):
            to = at + self.gain * action
            in_wall = (to[..., :1].abs() < 1) & ((to[..., 1:] - 4).abs() > 1)
            at = torch.where(in_wall, at, to).clamp(-6, 6) if self.wall else to
            path.append(at)
        return torch.stack(path, 2)


def plan(
    planner: Planner,
    s: Tensor = STARTS,
    goal: Tensor = GOALS,
    model: WorldModel | None = None,
    cost: Cost | None = None,
    start: Tensor | None = None,
    seed: int = 0,
) -> Plan:
    generator = Generator().manual_seed(seed)
    return planner.plan(s, model or Plane(), cost or GoalEnergy(), Modulation(goal), start, generator)


def least(s: Tensor, goal: Tensor, horizon: int) -> Tensor:
    """F of going straight at full speed, which nothing can beat: C = d ** 2 / 2 with d[t] = max(0, d[0] - t)."""
    distance = (s - goal).norm(dim=-1)[:, None] - torch.arange(1, horizon + 1)
    return distance.clamp_min(0).square().sum(-1) / 2


@every_planner
def test_plans_are_nearly_the_best_there_are(name: str) -> None:
    found = plan(MAKE[name]())
    assert (found.cost >= least(STARTS, GOALS, 12) - 1e-3).all()
    assert (found.cost <= 1.1 * least(STARTS, GOALS, 12) + 6).all()


@every_planner
def test_beats_random_search_of_the_same_budget(name: str) -> None:
    found = plan(MAKE[name]())
    search = Search(STARTS, Plane(), GoalEnergy(), Modulation(GOALS), memory_mb=256)
    noise = coloured_noise(found.evaluations // 12, 12, 2, 2.0, Generator().manual_seed(0), STARTS)
    search.evaluate(project(noise, 1.0).expand(4, -1, -1, -1))
    assert search.evaluations == found.evaluations
    assert (found.cost < search.plan().cost).all()


@every_planner
def test_states_and_cost_are_those_of_the_actions(name: str) -> None:
    found = plan(MAKE[name]())
    torch.testing.assert_close(found.states, STARTS[:, None] + found.actions.cumsum(1))
    energy = GoalEnergy()(found.states[:, None], found.actions[:, None], Modulation(GOALS)).sum(-1)[:, 0]
    torch.testing.assert_close(found.cost, energy)
    assert not any(t.requires_grad or t.is_inference() for t in (found.actions, found.states, found.cost))


@every_planner
def test_evaluations_are_the_steps_that_the_world_model_made(name: str) -> None:
    model = Plane()
    assert plan(MAKE[name](memory_mb=0.001), model=model).evaluations == model.steps > 0


def test_evaluations_follow_from_the_settings() -> None:
    assert plan(MAKE["cem"]()).evaluations == plan(MAKE["mppi"]()).evaluations == 64 * 4 * 12
    assert plan(MAKE["gradient"]()).evaluations == 8 * 20 * 12
    assert plan(MAKE["icem"](decay=2.0)).evaluations == (64 + 32 + 16 + 16) * 12


@every_planner
def test_same_seed_same_plan(name: str) -> None:
    first, again, other = (plan(MAKE[name](iterations=1), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.actions, again.actions)
    assert not torch.equal(first.actions, other.actions)


@every_planner
def test_an_episode_is_planned_as_if_it_were_alone(name: str) -> None:
    together, alone = plan(MAKE[name]()), plan(MAKE[name](), STARTS[2:3], GOALS[2:3])
    torch.testing.assert_close(together.actions[2:3], alone.actions, atol=1e-4, rtol=1e-4)


@every_planner
def test_memory_bound_does_not_change_the_plan(name: str) -> None:
    torch.testing.assert_close(plan(MAKE[name]()).actions, plan(MAKE[name](memory_mb=0.001)).actions)


@every_planner
def test_a_warm_start_is_never_made_worse(name: str) -> None:
    planner = MAKE[name](**({"restarts": 1} if name == "gradient" else {"samples": 8}), iterations=1)
    good = plan(MAKE[name]())
    warm = plan(planner, start=good.actions)
    assert (warm.cost <= good.cost + 1e-4).all()
    assert (warm.cost < plan(planner).cost).all()


@every_planner
def test_works_within_inference_mode_and_leaves_parameters_alone(name: str) -> None:
    model, metric = Plane(), nn.Linear(2, 2)
    with torch.inference_mode():
        found = plan(MAKE[name](), STARTS + 0, GOALS + 0, model, GoalEnergy(metric))
    assert torch.isfinite(found.cost).all()
    assert all(p.grad is None and p.requires_grad for p in [*model.parameters(), *metric.parameters()])


@given(name=st.sampled_from(list(MAKE)), bound=st.floats(0.01, 100), scale=st.floats(0, 1e3), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_no_action_exceeds_the_bound(name: str, bound: float, scale: float, seed: int) -> None:
    planner = MAKE[name](horizon=3, iterations=2, action_bound=bound)
    found = plan(planner, STARTS * scale, start=scale * torch.ones(4, 2, 2), seed=seed)
    assert (found.actions.norm(dim=-1) <= bound * (1 + 1e-5)).all()


def not_finite(states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
    return states.sum(-1) / 0


@every_planner
def test_a_cost_that_is_not_finite_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not finite.*check that the checkpoint"):
        plan(MAKE[name](), cost=not_finite)


def not_differentiable(states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
    return (0 * states.sum(-1)).sqrt()


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="no derivative there.*sampling planner"):
        plan(MAKE["gradient"](), cost=not_differentiable)


@every_planner
@pytest.mark.parametrize(
    "wrong",
    [
        {"horizon": 0},
        {"iterations": 1.5},
        {"action_size": True},
        {"action_bound": 0.0},
        {"spread": float("nan")},
        {"memory_mb": -1.0},
        {"colour": -0.1},
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(name: str, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"planner.{next(iter(wrong))}=.*expected"):
        MAKE[name](**wrong)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("cem", {"elites": 65}),
        ("cem", {"least_spread": 2.0}),
        ("icem", {"elites": 65}),
        ("icem", {"kept": 9}),
        ("icem", {"decay": 0.5}),
        ("icem", {"momentum": 1.0}),
        ("mppi", {"temperature": 0.0}),
        ("gradient", {"restarts": 0}),
        ("gradient", {"step_size": 0.0}),
    ],
)
def test_numbers_of_one_planner_out_of_range_are_refused(name: str, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"planner.{next(iter(wrong))}=.*expected"):
        MAKE[name](**wrong)


@every_planner
@pytest.mark.parametrize("shape", [(4, 3, 3), (3, 3, 2), (4, 2), (4, 0, 2)])
def test_a_warm_start_that_does_not_fit_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="the warm start has shape"):
        plan(MAKE[name](), start=torch.zeros(shape))


@every_planner
def test_a_state_that_is_not_one_vector_an_episode_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="encode one frame"):
        plan(MAKE[name](), s=torch.zeros(4, 1, 2))


def test_warm_start_is_cut_or_filled_up_with_zeros() -> None:
    start = torch.arange(12.0).view(2, 3, 2)
    assert torch.equal(warm_start(start, STARTS[:2], 2, 2), start[:, :2])
    longer = warm_start(start, STARTS[:2], 5, 2)
    assert torch.equal(longer[:, :3], start)
    assert longer[:, 3:].eq(0).all()
    assert torch.equal(warm_start(None, STARTS, 5, 2), torch.zeros(4, 5, 2))


@given(bound=st.floats(1e-3, 1e3), scale=st.floats(0, 1e3))
def test_projection_shortens_what_is_too_long_and_nothing_else(bound: float, scale: float) -> None:
    actions = scale * torch.randn(50, 3, generator=Generator().manual_seed(0))
    shortened, norm = project(actions, bound), actions.norm(dim=-1, keepdim=True)
    assert (shortened.norm(dim=-1) <= bound * (1 + 1e-5)).all()
    torch.testing.assert_close(shortened * norm, actions * norm.clamp_max(bound))


@pytest.mark.parametrize("colour", [0.0, 1.0, 2.0, 4.0])
def test_noise_has_unit_variance_and_the_colour_asked_for(colour: float) -> None:
    noise = coloured_noise(20000, 16, 2, colour, Generator().manual_seed(0), STARTS)
    assert noise.shape == (20000, 16, 2)
    torch.testing.assert_close(noise.var((0, 2)), torch.ones(16), atol=0.05, rtol=0)
    neighbours = (noise[:, 1:] * noise[:, :-1]).mean()
    least_correlation = {0.0: -0.02, 1.0: 0.4, 2.0: 0.75, 4.0: 0.9}[colour]
    assert least_correlation <= neighbours <= (0.02 if colour == 0 else 1.0)


SHORT = partial(MAKE["cem"], samples=32, iterations=3, horizon=6)
GRAPH = partial(
    GraphSearch,
    metric=None,
    rounds=3,
    origins=16,
    walks=8,
    walk_steps=10,
    nodes=192,
    branches=12,
    branch_steps=2,
    **SPACE,
)
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
    around, _ = control(GRAPH(SHORT()))
    assert ((straight - THERE).norm(dim=-1) > 3).all()
    assert ((around - THERE).norm(dim=-1) < 1).all()


def test_the_graphs_cost_is_about_the_steps_to_go() -> None:
    cost = GRAPH(SHORT()).build(HERE, Plane(wall=True), THERE, Generator().manual_seed(0))
    places = torch.tensor([[-3.0, -2.0], [-2.0, 3.0], [-1.1, 0.0], [1.1, 0.0], [2.0, 3.0]])
    corner = torch.tensor([1.0, 3.0])
    way = (places - corner * torch.tensor([-1.0, 1.0])).norm(dim=-1) + 2 + (corner - THERE[0]).norm()
    way[3:] = (places[3:] - THERE[0]).norm(dim=-1)
    found = cost(places.expand(2, 1, -1, -1), torch.zeros(2, 1, 5, 2), Modulation(THERE))[0, 0]
    assert (found > way - 1).all()
    assert (found < 1.6 * way + 1).all()
    assert cost(THERE[:, None, None], torch.zeros(2, 1, 1, 2), Modulation(THERE)).eq(0).all()
    tight = GRAPH(SHORT(), memory_mb=0.001).build(HERE, Plane(wall=True), THERE, Generator().manual_seed(0))
    torch.testing.assert_close(
        tight(places.expand(2, 1, -1, -1), torch.zeros(2, 1, 5, 2), Modulation(THERE))[0, 0], found
    )


def test_the_graph_is_built_once_for_each_goal_and_counted() -> None:
    planner, model = GRAPH(SHORT()), Plane()
    own, modulation = 32 * 3 * 6, Modulation(GOALS)
    first = planner.plan(STARTS, model, GoalEnergy(), modulation)
    assert first.evaluations == planner.build_evaluations + own == model.steps
    assert planner.plan(STARTS, model, GoalEnergy(), modulation).evaluations == own
    assert planner.plan(STARTS, model, GoalEnergy(), Modulation(GOALS.clone())).evaluations == first.evaluations


def test_the_graph_leaves_room_for_gradients() -> None:
    found = plan(GRAPH(MAKE["gradient"](), reach=1.0))
    assert ((found.states[:, -1] - GOALS).norm(dim=-1) < 1).all()


def test_the_graph_measures_in_the_space_of_the_metric() -> None:
    class Doubled(nn.Module):
        def forward(self, s: Tensor) -> Tensor:
            return torch.cat([2 * s, torch.zeros_like(s)], -1)

    plain, doubled = (
        GRAPH(SHORT(), metric=metric).build(HERE, Plane(), THERE, Generator().manual_seed(0))
        for metric in (None, Doubled())
    )
    torch.testing.assert_close(doubled.unit, 2 * plain.unit, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(doubled.to_go.mean(), plain.to_go.mean(), atol=0.5, rtol=0.1)


def test_a_goal_that_nothing_leads_to_is_still_approached() -> None:
    class Closed(Plane):
        def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
            side = s[:, None, None, :1].sign()
            states = super().rollout(s, actions)
            return torch.cat([states[..., :1].abs().clamp_min(0.5) * side, states[..., 1:]], -1)

    cost = GRAPH(SHORT()).build(HERE, Closed(), THERE, Generator().manual_seed(0))
    assert torch.isfinite(cost.to_go).all()
    near, far = torch.tensor([-1.0, 0.0]), torch.tensor([-6.0, 0.0])
    places = torch.stack([near, far]).expand(2, 1, 2, 2)
    energy = cost(places, torch.zeros(2, 1, 2, 2), Modulation(THERE))[:, 0]
    assert (energy[:, 0] < energy[:, 1]).all()


@pytest.mark.parametrize(
    "wrong", [{"nodes": 15}, {"nodes": 16 * 8 * 10 + 1}, {"rounds": 0}, {"walks": 0}, {"colour": 9}], ids=str
)
def test_graph_numbers_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"planner.{next(iter(wrong))}=.*expected"):
        GRAPH(SHORT(), **wrong)


def test_farthest_points_cover_the_rest() -> None:
    points = torch.rand(3, 200, 2, generator=Generator().manual_seed(0))
    chosen, spacing = farthest(points, 20)
    rest = torch.cdist(points, points[torch.arange(3)[:, None], chosen]).amin(-1).amax(1)
    torch.testing.assert_close(spacing, rest)
    assert (chosen[:, 0] == 0).all()
    assert all(len(set(row.tolist())) == 20 for row in chosen)


def test_relaxation_solves_bellmans_equation() -> None:
    """A chain 3 -> 2 -> 1 -> 0 with a shortcut 3 -> 1 that is longer, and a node from which nothing leads on."""
    successor = torch.tensor([[0, 0, 0, 0, 1, 1, 2, 1, 4, 4]])
    edge = torch.tensor([[1.0, 1, 2, 5, 1, 3, 1, 4, 1, 1]])
    known = torch.tensor([[0.0, torch.inf, torch.inf, torch.inf, torch.inf]])
    assert steps_to_go(successor, edge, known).tolist() == [[0, 2, 3, 4, torch.inf]]
