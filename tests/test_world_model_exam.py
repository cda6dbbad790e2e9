"""The exam's measures of perception, contact and cost on models whose true answers are known.

A model that knows positions has leak 0, pass 1, rollout error 0; one that ignores walls leaks always.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from observers import Centroid, Sampler, generator
from torch import Tensor, nn

from data_pipelines.worlds.rooms import RoomsWorld, TwoRoomsLayouts
from lightning_jepa.evaluation import contact
from lightning_jepa.evaluation.cost_rank import cost_rank_correlation, planning_cost, spearman
from lightning_jepa.evaluation.floors import (
    PixelDistance,
    TrueDynamics,
)
from lightning_jepa.evaluation.probes import fit_probe, randomised, score
from lightning_jepa.evaluation.rollouts import rollout_errors
from lightning_jepa.evaluation.states import encode_at, encode_frames, way_lengths
from lightning_jepa.evaluation.walks import random_walks
from lightning_jepa.evaluation.world import draw_layouts, draw_positions
from lightning_jepa.types import Modulation


@pytest.fixture
def world() -> RoomsWorld:
    return RoomsWorld(TwoRoomsLayouts(), episode_steps=60)


@given(st.integers(0, 2**31), st.integers(3, 30))
def test_spearman_is_pearson_of_ranks(seed, size):
    x, y = torch.rand(2, size, generator=generator(seed))
    assert abs(float(spearman(x, x.exp())) - 1) < 1e-9
    assert abs(float(spearman(x, -x)) + 1) < 1e-9
    squares = (x.argsort().argsort() - y.argsort().argsort()).double().square().sum()
    assert abs(float(spearman(x, y)) - float(1 - 6 * squares / (size * (size**2 - 1)))) < 1e-6


def test_spearman_of_a_constant_is_zero():
    assert spearman(torch.ones(4), torch.arange(4.0)) == 0


class TrueWay:
    """A cost that knows the layout: only for judging the judge."""

    def __init__(self, world: RoomsWorld) -> None:
        self.world = world

    def __call__(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        ids = self.layouts.repeat_interleave(states.shape[1])
        goals = modulation.goal.repeat_interleave(states.shape[1], 0)
        return way_lengths(self.world, ids, states.flatten(0, 2), goals).view(states.shape[:3])


def test_rank_correlation_is_one_for_the_true_way_and_less_for_the_raw_distance(world):
    cost = TrueWay(world)
    cost.layouts = draw_layouts(world, "held_out", 5, generator(7)).repeat_interleave(2)
    truth = TrueDynamics(world)
    perfect = cost_rank_correlation(world, truth, lambda s, g: cost, generator(7), layouts=5, goals=2, states=30)
    raw = cost_rank_correlation(world, truth, lambda s, g: PixelDistance(), generator(7), layouts=5, goals=2, states=30)
    torch.testing.assert_close(perfect, torch.ones(5, dtype=torch.float64))
    assert 0.3 < raw.mean() < 0.98


def test_the_planning_cost_is_the_one_a_planner_builds_else_the_one_it_is_given(world):
    class Builder(Sampler):
        def build(self, s, world_model, goal, generator=None):
            return (s, goal)

    s, goal, given = torch.zeros(1, 2), torch.ones(1, 2), PixelDistance()
    assert planning_cost(Sampler(), given, Centroid(), 0)(s, goal) is given
    assert planning_cost(Builder(), given, Centroid(), 0)(s, goal) == (s, goal)


def test_contact_true_dynamics_never_leaks_and_always_passes(world):
    truth = TrueDynamics(world)
    assert not contact.leaks(world, truth, lambda s: s, 600, generator()).any()
    assert contact.passes(world, truth, lambda s: s, 600, generator()).all()


def test_contact_a_model_without_walls_always_leaks(world):
    assert contact.leaks(world, Centroid(), lambda s: s, 100, generator()).all()
    assert contact.passes(world, Centroid(), lambda s: s, 100, generator()).all()


class Stuck(Centroid):
    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        return s[:, None, None].expand(-1, *actions.shape[1:3], -1)


def test_contact_a_model_that_never_moves_never_passes(world):
    assert not contact.leaks(world, Stuck(), lambda s: s, 100, generator()).any()
    assert not contact.passes(world, Stuck(), lambda s: s, 100, generator()).any()


def test_pushes_start_free_on_held_out_layouts_and_meet_the_wall_or_the_door(world):
    for at_door in (True, False):
        made = contact.pushes(world, 800, at_door, generator())
        assert torch.isin(made.layouts, world.layouts.ids("held_out")).all()
        world.reset(made.layouts, made.starts)
        assert torch.equal(world.advance(made.starts[:, None], torch.zeros(800, 1, 2))[:, 0], made.starts)
        offset = (made.starts[:, 1] - world.layouts.factors(made.layouts)[:, 1]).abs()
        assert (offset <= 2.5 + 1e-4).all() if at_door else (offset >= 8 - 1e-4).all()
        assert ((made.starts[:, 0] - made.wall_x).abs() <= 10.001).all()


def test_rollouts_of_the_truth_have_no_error_and_both_controls_do(world):
    walks = random_walks(world, "held_out", 40, 16, generator())
    truth = TrueDynamics(world)
    world.reset(walks.layouts, walks.positions[:, 0])  # the simulator perceives the present alone
    errors = rollout_errors(truth, walks, lambda s: s, (1, 8, 16))
    assert errors.model.shape == (40, 3)
    assert errors.model.max() < 1e-4
    assert (errors.copy_last.mean(0) > 0.5).all()
    assert (errors.shuffled_actions.mean(0) > 0.5).all()
    assert errors.touched.any()
    assert not errors.touched.all()


def test_rollouts_without_walls_err_only_where_a_wall_was_touched(world):
    walks = random_walks(world, "held_out", 100, 16, generator())
    errors = rollout_errors(Centroid(), walks, lambda s: s, (16,))
    assert errors.model[~errors.touched].max() < 1 < errors.model[errors.touched].mean()


def test_rollouts_need_walks_as_long_as_their_horizons(world):
    with pytest.raises(ValueError, match="walks of 9 frames, not 5"):
        rollout_errors(Centroid(), random_walks(world, "train", 3, 4, generator()), lambda s: s, (8,))


def test_walks_stay_within_the_action_bound_and_tell_the_truth(world):
    walks = random_walks(world, "train", 50, 10, generator())
    assert walks.observations.shape == (50, 11, 2, 33, 33)
    assert walks.observations.dtype == torch.uint8
    assert (walks.actions.norm(dim=-1) <= world.action_bound + 1e-4).all()
    assert torch.isin(walks.layouts, world.layouts.ids("train")).all()
    torch.testing.assert_close(walks.truth[:, 0, 2:], world.layouts.factors(walks.layouts))


def test_a_linear_probe_reads_linear_factors_of_other_layouts():
    g = generator()
    mix, states = torch.randn(3, 12, generator=g), torch.randn(600, 3, generator=g)
    layouts = torch.arange(600) // 4
    noise = torch.randn(600, 12, generator=g) * 0.01
    features = torch.cat([states @ mix + noise + 5, torch.full((600, 1), 7.0)], 1)  # one feature is constant
    probe = fit_probe(features[:400], states[:400], layouts[:400])
    found = score(probe, features[400:], states[400:])
    assert (found.r2 > 0.999).all()
    assert (found.rmse < 0.05).all()
    noise_probe = fit_probe(torch.randn(400, 12, generator=g), states[:400], layouts[:400])
    assert (score(noise_probe, torch.randn(200, 12, generator=g), states[400:]).r2 < 0.05).all()


def test_a_probe_chooses_its_strength_on_layouts_it_was_not_fitted_on():
    """Features enough to name each layout fit its factor perfectly in sample; on layouts held back they are noise."""
    g = generator()
    layouts = torch.arange(60).repeat_interleave(3)
    factor = torch.randn(60, 1, generator=g)[layouts]
    names = torch.randn(60, 200, generator=g)[layouts]
    assert fit_probe(names, factor, layouts, strengths=(1e-6, 10.0)).strengths == 10
    with pytest.raises(ValueError, match="five or more"):
        fit_probe(torch.randn(8, 2), torch.randn(8, 1), torch.arange(8) // 2)


def test_the_random_control_keeps_buffers_and_forgets_weights():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.place = nn.Parameter(torch.ones(3))
            self.register_buffer("scale", torch.tensor(3.0))

    net = Net()
    state = torch.get_rng_state()
    control, again = randomised(net, 1), randomised(net, 1)
    assert torch.equal(state, torch.get_rng_state())
    assert control.scale == 3
    assert not torch.equal(control.linear.weight, net.linear.weight)
    assert not torch.equal(control.place, net.place)
    assert torch.equal(control.place, again.place)
    assert torch.equal(net.place, torch.ones(3))


def test_states_in_batches_are_the_states_one_by_one(world):
    ids = draw_layouts(world, "train", 600, generator())
    where = draw_positions(world, ids, generator())
    torch.testing.assert_close(encode_at(world, TrueDynamics(world), ids, where), where)
    frames = world.reset(ids, where)
    assert torch.equal(encode_frames(Centroid(), frames, batch=7), Centroid().encode(frames[:, None])[:, 0])
