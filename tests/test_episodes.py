"""Episodes, floors and the diagnosis, on agents whose true answers are known."""

from __future__ import annotations

import pytest
import torch
from observers import Centroid, Cycle, Greedy, Sampler, generator
from rich.progress import Progress

from data_pipelines.worlds.rooms import RoomsWorld, TwoRoomsLayouts
from lightning_jepa.evaluation import fields
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
from lightning_jepa.evaluation.world import draw_layouts
from lightning_jepa.types import Tasks


@pytest.fixture
def world() -> RoomsWorld:
    return RoomsWorld(TwoRoomsLayouts(), episode_steps=60)


@pytest.fixture
def tasks(world: RoomsWorld) -> Tasks:
    ids = draw_layouts(world, "held_out", 12, generator())
    rooms = torch.randint(2, (12,), generator=generator(1))
    starts = world.sample_states(ids, rooms, generator(2))
    return Tasks(ids, starts, world.sample_states(ids, 1 - rooms, generator(3)))


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
        search=Sampler(),
        larger=Sampler(),
        make_agent=Cycle,
    )
    success = {name: int(run.ever.sum()) for name, run in runs.items()}
    assert success["true_all"] >= success["true_contact_cost"] - 1
    assert success["true_all"] == 4
    assert success["agent_larger"] < 4
