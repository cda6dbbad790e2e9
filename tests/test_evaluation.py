"""The exam's measures on models whose true answers are known.

A model that knows positions has leak 0, pass 1, rollout error 0; one that ignores walls leaks always.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress
from torch import Generator, Tensor, nn

from data_pipelines.worlds.rooms import RoomsWorld, TwoRoomsLayouts
from lightning_jepa.evaluation import contact, fields
from lightning_jepa.evaluation.cost_rank import cost_rank_correlation, planning_cost, spearman
from lightning_jepa.evaluation.diagnosis import diagnose
from lightning_jepa.evaluation.episodes import AgentPolicy, first_tasks, progress_bar, run_episodes
from lightning_jepa.evaluation.floors import (
    DrunkardPolicy,
    ExpertPolicy,
    PixelDistance,
    RandomPolicy,
    StraightPolicy,
    TrueDynamics,
)
from lightning_jepa.evaluation.probes import fit_probe, randomised, score
from lightning_jepa.evaluation.rollouts import rollout_errors
from lightning_jepa.evaluation.states import encode_at, encode_frames, way_lengths
from lightning_jepa.evaluation.walks import random_walks
from lightning_jepa.evaluation.world import draw_layouts, draw_positions
from lightning_jepa.types import Modulation, Plan, Tasks


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture
def world() -> RoomsWorld:
    return RoomsWorld(TwoRoomsLayouts(), episode_steps=60)


@pytest.fixture
def tasks(world: RoomsWorld) -> Tasks:
    ids = draw_layouts(world, "held_out", 12, generator())
    rooms = torch.randint(2, (12,), generator=generator(1))
    starts = world.sample_states(ids, rooms, generator(2))
    return Tasks(ids, starts, world.sample_states(ids, 1 - rooms, generator(3)))


class Centroid:
    """Sees the agent at the centroid of its spot. Imagines by adding actions up: knows no walls."""

    def encode(self, observations: Tensor) -> Tensor:
        spot = observations[:, :, 0].double()
        pixels = torch.arange(spot.shape[-1]).double() * 64 / (spot.shape[-1] - 1)
        mass = spot.sum((-1, -2)).clamp_min(1e-9)
        x, y = (spot.sum(axis) @ pixels / mass for axis in (-2, -1))
        return torch.stack([x, y], -1).float()

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        return s[:, None, None] + actions.cumsum(2)


class Greedy:
    """A planner of one candidate: straight at the goal, ten steps."""

    def plan(self, s, world_model, cost, modulation, start=None, generator=None) -> Plan:
        step = modulation.goal - s[..., :2]
        step = step / step.norm(dim=-1, keepdim=True).clamp_min(1e-6) * 2
        actions = step[:, None].expand(-1, 10, -1)
        states = world_model.rollout(s, actions[:, None])
        total = cost(states, actions[:, None], modulation).sum(-1)[:, 0]
        return Plan(actions, states[:, 0], total, 10)


class Sampler:
    """The best of 48 noisy straight lines of 12 steps, first heading drawn anywhere: a small random search."""

    def plan(self, s, world_model, cost, modulation, start=None, generator=None) -> Plan:
        noise = torch.Generator().manual_seed(0)
        angle = 6.2832 * torch.rand(1, 48, 2, generator=noise)
        heading = angle.repeat_interleave(6, 2)
        actions = 2 * torch.stack([heading.cos(), heading.sin()], -1).expand(len(s), -1, -1, -1)
        states = world_model.rollout(s, actions)
        total = cost(states, actions, modulation).sum(-1)
        value, best = total.min(1)
        rows = torch.arange(len(s))
        return Plan(actions[rows, best], states[rows, best], value, 48 * 12)


class Cycle:
    """The perception-action cycle at its smallest, replanning at every step."""

    def __init__(self, world_model, cost, planner) -> None:
        self.world_model, self.cost, self.planner, self.evaluations = world_model, cost, planner, 0
        self.plan = None

    def reset(self, goal_observations: Tensor) -> None:
        self.modulation = Modulation(goal=self.world_model.encode(goal_observations[:, None])[:, 0])

    def act(self, observations: Tensor) -> Tensor:
        s = self.world_model.encode(observations[:, None])[:, 0]
        self.plan = self.planner.plan(s, self.world_model, self.cost, self.modulation)
        self.evaluations += self.plan.evaluations
        return self.plan.actions[:, 0]


def test_the_expert_always_arrives_and_stays(world, tasks):
    run = run_episodes(world, tasks, ExpertPolicy(), batch=5)
    assert run.final.all()
    assert run.ever.all()
    assert run.positions.shape == (12, 61, 2)
    assert run.distance.shape == (12, 61)
    assert torch.equal(run.positions[:, 0], tasks.starts)
    assert run.rows()["success"].value == 1
    assert run.rows()["evaluations"].value == 0


def test_floors_stand_in_the_order_of_what_they_know(world):
    count = 150
    ids = draw_layouts(world, "held_out", count, generator())
    rooms = torch.randint(2, (count,), generator=generator(1))
    starts = world.sample_states(ids, rooms, generator(2))
    many = Tasks(ids, starts, world.sample_states(ids, 1 - rooms, generator(3)))
    ever = [run_episodes(world, many, p, batch=150).ever.float().mean() for p in (RandomPolicy(1), StraightPolicy(1))]
    assert ever[0] < ever[1] < run_episodes(world, many, DrunkardPolicy(1), batch=150).ever.float().mean() < 0.8


def test_evaluations_are_counted_for_each_decision_and_the_bar_tells_success(world, tasks):
    bar = Progress(disable=True)
    policy = AgentPolicy(Cycle(TrueDynamics(world), PixelDistance(), Greedy()))
    run = run_episodes(world, tasks, policy, batch=5, progress=bar, label="greedy")
    assert run.evaluations_per_decision == 10
    assert run.seconds_per_decision > 0
    assert bar.tasks[0].completed == 12 * 60
    assert bar.tasks[0].fields["success"] == f"at the goal: {run.final.float().mean():.0%}"


def test_progress_is_lines_where_nothing_can_be_drawn(world, tasks, capsys, monkeypatch):
    with progress_bar() as bar:
        run_episodes(world, first_tasks(tasks, 3), ExpertPolicy(), batch=2, progress=bar, label="expert")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" episodes")[0] for line in lines] == ["expert: 2 of 3", "expert: 3 of 3"]
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich's word for a terminal
    with progress_bar() as bar:
        run_episodes(world, first_tasks(tasks, 3), ExpertPolicy(), progress=bar, label="expert")
    assert "steps/s" in capsys.readouterr().out


def test_too_many_episodes_are_refused(tasks):
    with pytest.raises(ValueError, match="12: choose"):
        first_tasks(tasks, 13)


def test_true_dynamics_imagines_what_the_world_does(world, tasks):
    truth = TrueDynamics(world)
    s = truth.encode(world.reset(tasks.layouts, tasks.starts)[:, None])[:, 0]
    actions = torch.randn(12, 7, 2, generator=generator(4)) * 2
    imagined = truth.rollout(s, actions[:, None])[:, 0]
    for step in range(7):
        world.step(actions[:, step])
        torch.testing.assert_close(world.state, imagined[:, step])
    with pytest.raises(ValueError, match="one frame"):
        truth.encode(torch.zeros(1, 2, 2, 33, 33))


def test_planning_with_the_truth_beats_going_straight(world, tasks):
    planned = run_episodes(world, tasks, AgentPolicy(Cycle(TrueDynamics(world), PixelDistance(), Sampler())))
    straight = run_episodes(world, tasks, StraightPolicy())
    assert planned.ever.sum() > straight.ever.sum()


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


def test_a_field_tells_the_way_of_each_place_and_does_not_see_through_walls(world, tasks):
    tasks = first_tasks(tasks, 4)
    way = fields.way_field(world, tasks.layouts, tasks.goals)
    for where, within in ((tasks.goals, 2.0), (tasks.starts, None)):
        world.reset(tasks.layouts, where)
        told = way.at(where[:, None, None])[:, 0, 0, 0]
        true = world.way_length(tasks.goals)
        assert ((told - true).abs() < (within or 4.0)).all()
    rooms = world.layouts.factors(tasks.layouts)
    before = torch.stack([rooms[:, 0] - 2.01, torch.where(rooms[:, 1] > 32, 8.0, 56.0)], -1)
    world.reset(tasks.layouts, before)
    told = way.at(before[:, None, None])[:, 0, 0, 0]
    assert ((told - world.way_length(tasks.goals)).abs() < 4).all()


def test_energy_and_perception_over_the_floor(world, tasks):
    some = first_tasks(tasks, 3)
    energy = fields.energy_field(world, Centroid(), PixelDistance(), some.layouts, some.goals)
    here = some.starts[:, None, None]
    told, true = energy.at(here)[:, 0, 0, 0], (some.starts - some.goals).norm(dim=-1)
    assert ((told - true).abs() < 1).all()
    seen = fields.perceived_field(world, Centroid(), lambda s: s, some.layouts)
    assert (seen.at(here) - here).abs().max() < 0.5


def test_diagnosis_names_the_part_that_bounds(world, tasks):
    """Perception is right and walls are unknown: true contact and the true way mend it, more search does not."""
    some = first_tasks(tasks, 4)
    runs = diagnose(
        world,
        some,
        world_model=Centroid(),
        cost=PixelDistance(),
        decode=lambda s: s,
        planner=Sampler(),
        true_planner=Sampler(),
        search=Sampler(),
        larger=Sampler(),
        make_agent=Cycle,
    )
    success = {name: int(run.ever.sum()) for name, run in runs.items()}
    assert success["true_all"] >= success["true_contact_cost"] - 1
    assert success["true_all"] == 4
    assert success["goal_energy"] < 4
    assert success["agent"] == success["agent_larger"] == success["goal_energy"]
