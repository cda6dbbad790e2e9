"""Planners minimise F(a) = sum_t C(s[t]) over action sequences, in the small world of `plane`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plane import GOALS, MAKE, STARTS, Plane, plan
from torch import Generator, Tensor, nn

from lightning_jepa.actor.planners.shooting import Search, coloured_noise, project, warm_start
from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.types import Modulation

every_planner = pytest.mark.parametrize("name", list(MAKE))


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


def test_who_is_there_rests_instead_of_moving_somehow() -> None:
    """To do nothing is the best there is at the goal, and a candidate whatever a plan starts from."""
    astray = torch.full((4, 12, 2), 0.5)
    found = plan(MAKE["cem"](iterations=1, rest=True), s=GOALS, start=astray)
    assert torch.equal(found.actions, torch.zeros(4, 12, 2))
    assert plan(MAKE["cem"](iterations=1), s=GOALS, start=astray).cost.min() > 0


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
        ("cem", {"rest": True, "samples": 1, "elites": 1}),
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
