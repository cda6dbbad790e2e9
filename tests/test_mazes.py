"""Mazes: a spanning tree of passages, so that there is one way between any two cells; and a lamp without use."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.worlds.distraction import DistractedRooms
from data_pipelines.worlds.geometry import blob, free_fraction, travel
from data_pipelines.worlds.mazes import MazeLayouts
from data_pipelines.worlds.rooms import RoomsWorld
from data_pipelines.worlds.tasks import MAZE_WAYS, load_tasks, maze_tasks
from data_pipelines.worlds.walks import VonMisesWalk
from lightning_jepa.types import Tasks

MAZES = MazeLayouts(count=500)


@settings(deadline=None, max_examples=10)
@given(cells=st.integers(2, 6), first=st.integers(0, 10**6))
def test_passages_are_a_spanning_tree(cells: int, first: int) -> None:
    mazes, ids = MazeLayouts(cells), torch.arange(first, first + 4)
    steps = mazes.steps(ids)
    assert (mazes.factors(ids).sum(1) == cells**2 - 1).all()
    assert (steps < cells**2).all()  # each cell can be reached, so that with these passages there is no second way
    assert torch.equal(steps, steps.transpose(1, 2))


def test_walls_are_where_there_is_no_passage() -> None:
    ids = MAZES.ids("train")[:20]
    centre = MAZES.corners() + MAZES.side / 2
    start, end = (centre[cell].expand(20, -1, -1) for cell in MAZES.pairs.unbind(-1))
    free = free_fraction(start, end - start, MAZES.walls(ids)) >= 1
    assert torch.equal(free, MAZES.factors(ids) > 0)
    assert MAZES.walls(ids).shape == (20, 4 + 16, 4)
    assert torch.equal(MAZES.cell_of(centre), torch.arange(25))


def test_the_same_maze_is_never_in_both_splits() -> None:
    drawn = MazeLayouts(cells=2, count=200)  # four mazes there are: every number repeats one
    mazes = [set(map(tuple, drawn.factors(drawn.ids(split)).tolist())) for split in ("train", "held_out")]
    assert not mazes[0] & mazes[1]
    assert len(mazes[0] | mazes[1]) == 4
    assert len(MAZES.ids("held_out")) == pytest.approx(0.2 * 500, abs=30)


def test_mazes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="cells=12, count=100: give 2 to 9 cells"):
        MazeLayouts(12, 100)


@pytest.mark.parametrize("name", MAZE_WAYS)
def test_goals_lie_as_far_as_said_and_out_of_greedy_reach(name: str) -> None:
    tasks, world = load_tasks(name), RoomsWorld(MazeLayouts())
    assert all(torch.equal(a, b) for a, b in zip(tasks, maze_tasks(world, MAZE_WAYS[name]), strict=True))
    mazes = MazeLayouts()
    passages = mazes.steps(tasks.layouts)[
        torch.arange(300), mazes.cell_of(tasks.starts), mazes.cell_of(tasks.goals)
    ].tolist()
    assert set(passages) == set(MAZE_WAYS[name])
    assert set(tasks.layouts.tolist()) <= set(mazes.ids("held_out").tolist())
    world.reset(tasks.layouts, tasks.starts)
    straight = travel(tasks.starts[:, None], (tasks.goals - tasks.starts)[:, None], world.solid)[:, 0]
    assert ((straight - tasks.goals).norm(dim=-1) > 4.5).all()


def test_the_expert_finds_the_way_out() -> None:
    tasks, world = Tasks(*(column[:8] for column in load_tasks("maze_8_12"))), RoomsWorld(MazeLayouts())
    world.reset(tasks.layouts, tasks.starts)
    for _ in range(math.ceil(float(world.way_length(tasks.goals).max()) / world.action_bound) + 4):
        world.step(world.expert(tasks.goals))
    assert ((world.state - tasks.goals).norm(dim=-1) < 0.1).all()


def test_walks_begin_in_every_cell() -> None:
    generator, ids = torch.Generator().manual_seed(0), torch.arange(500)
    starts = VonMisesWalk(door_share=0.0).reset(RoomsWorld(MAZES), ids, generator)
    assert set(MAZES.cell_of(starts).tolist()) == set(range(25))


def test_the_lamp_shows_how_long_the_last_step_was_and_changes_nothing_else() -> None:
    generator, ids = torch.Generator().manual_seed(0), torch.arange(64)
    dark, lit = RoomsWorld(MAZES), DistractedRooms(MAZES)
    starts = lit.sample_states(ids, ids % 25, generator)
    dark.reset(ids, starts)
    assert not lit.reset(ids, starts)[:, 2].any()
    for _ in range(32):
        action = torch.randn(64, 2, generator=generator)
        plain, seen = dark.step(action), lit.step(action)
        assert torch.equal(seen[:, :2], plain)
        light = (torch.pi * action.norm(dim=1).clamp_max(2.45) / 2.45).sin().square()
        torch.testing.assert_close(lit.truth()[:, -1], light)
        shone = 255 * blob(lit.state, 65, 2, 1.3) * light[:, None, None]
        assert ((seen[:, 2] - shone).abs() <= 0.51).all()
