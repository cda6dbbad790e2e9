"""Worlds: x[t+1] = x[t] + a, shortened to the bound and stopped at walls; pictures show the state."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.worlds.geometry import coverage, inside, travel
from data_pipelines.worlds.hazards import HazardRooms, HazardTwoRooms
from data_pipelines.worlds.rooms import RoomsWorld, TwoRoomsLayouts
from data_pipelines.worlds.tasks import FOLDER, load_tasks, room_tasks, write_tasks
from data_pipelines.worlds.walks import VonMisesWalk
from lightning_jepa.types import Tasks

LAYOUTS = TwoRoomsLayouts()


def begun(count: int, seed: int, **world_arguments: int) -> tuple[RoomsWorld, torch.Generator]:
    """A world with episodes begun anywhere."""
    generator = torch.Generator().manual_seed(seed)
    world = RoomsWorld(LAYOUTS, **world_arguments)
    layouts = torch.randint(25 * 45, (count,), generator=generator)
    world.reset(layouts, world.sample_states(layouts, torch.randint(2, (count,), generator=generator), generator))
    return world, generator


def test_held_out_layouts_share_no_layout_but_every_wall_and_door_with_training() -> None:
    train, held_out = LAYOUTS.ids("train"), LAYOUTS.ids("held_out")
    assert not set(train.tolist()) & set(held_out.tolist())
    assert len(train) + len(held_out) == 25 * 45
    assert len(held_out) == pytest.approx(0.2 * 25 * 45, abs=10)
    for axis in (0, 1):
        seen = [set(LAYOUTS.factors(ids)[:, axis].tolist()) for ids in (train, held_out)]
        assert seen[0] >= seen[1]
    with pytest.raises(ValueError, match="choose 'train' or 'held_out'"):
        LAYOUTS.ids("test")


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), speed=st.floats(0.1, 20))
def test_walls_stop_the_agent(seed: int, speed: float) -> None:
    world, generator = begun(32, seed)
    for _ in range(10):
        before = world.state
        world.step(torch.randn(32, 2, generator=generator) * speed)
        assert not inside(world.state[:, None], world.solid).any()
        assert ((world.state - before).norm(dim=-1) <= world.action_bound + 1e-4).all()
        wall, door = LAYOUTS.factors(world.layout_ids).unbind(-1)
        crossed = (before[:, 0] < wall) != (world.state[:, 0] < wall)
        halfway = (before[:, 1] + world.state[:, 1]) / 2
        assert ((halfway - door).abs() <= 4.5)[crossed].all()


def test_a_free_step_is_the_displacement_and_a_push_at_a_wall_leads_nowhere() -> None:
    world = RoomsWorld(LAYOUTS)
    layout = torch.tensor([0])  # wall at x = 20, door at y = 10
    world.reset(layout, torch.tensor([[12.0, 40.0]]))
    world.step(torch.tensor([[1.0, -2.0]]))
    assert world.state.tolist() == [[13.0, 38.0]]
    for _ in range(10):
        world.step(torch.tensor([[2.45, 0.0]]))
    assert world.state[0, 0] == pytest.approx(20 - 1.5 - world.radius, abs=0.01)
    assert world.state[0, 1] == 38.0


def test_parallel_moves_beside_a_wall_are_free() -> None:
    walls = torch.tensor([[[10.0, 10.0, 12.0, 30.0]]])
    moves = torch.tensor([[[0.0, 8.0], [8.0, 0.0], [0.0, 0.0]]])
    ends = travel(torch.tensor([[[5.0, 15.0]]]).expand(1, 3, 2), moves, walls)
    assert torch.allclose(ends, torch.tensor([[[5.0, 23.0], [10.0, 15.0], [5.0, 15.0]]]), atol=2e-3)


def test_advance_is_step_without_side_effects() -> None:
    world, generator = begun(16, 3)
    before = world.state.clone()
    actions = torch.randn(16, 5, 2, generator=generator) * 3
    ends = world.advance(before[:, None].expand(-1, 5, -1), actions)
    assert torch.equal(world.state, before)
    world.step(actions[:, 2].double())  # whatever a policy computes in
    assert torch.equal(world.state, ends[:, 2])


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), resolution=st.sampled_from([33, 65]))
def test_the_spot_is_where_the_state_is(seed: int, resolution: int) -> None:
    world, _ = begun(8, seed, resolution=resolution)
    agent = world.render()[:, 0].double()
    assert world.render().shape[1:] == world.observation_shape
    pixels = torch.arange(resolution) * world.stride
    mass = agent.sum((1, 2))
    x, y = (agent.sum(1) * pixels).sum(-1) / mass, (agent.sum(2) * pixels).sum(-1) / mass
    assert torch.allclose(torch.stack([x, y], -1).float(), world.state, atol=0.1)


@pytest.mark.parametrize("resolution", [33, 65])
def test_walls_are_drawn_where_they_stop_the_agent(resolution: int) -> None:
    world, _ = begun(8, 0, resolution=resolution)
    drawn = world.render()[:, 1].float() / 255
    area = coverage(world.walls, 65, 1).sum((1, 2))
    assert torch.allclose(drawn.sum((1, 2)) * world.stride**2, area, rtol=0.05)
    wall, door = (LAYOUTS.factors(world.layout_ids) / world.stride).round().long().unbind(-1)
    episodes = torch.arange(8)
    assert (drawn[episodes, door, wall] == 0).all()
    beside = torch.where(door > resolution // 2, door - 16 // world.stride, door + 16 // world.stride)
    assert (drawn[episodes, beside, wall] > 0.7).all()


def test_a_resolution_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match=r"resolution=64: .* 33 or 65"):
        RoomsWorld(LAYOUTS, resolution=64)


def test_the_expert_reaches_the_goals_along_the_shortest_way() -> None:
    tasks, world = Tasks(*(column[:60] for column in load_tasks())), RoomsWorld(LAYOUTS)
    world.reset(tasks.layouts, tasks.starts)
    length = world.way_length(tasks.goals)
    assert torch.isfinite(length).all()
    assert (length >= (tasks.goals - tasks.starts).norm(dim=-1) - 1e-3).all()
    for _ in range(math.ceil(float(length.max()) / world.action_bound) + 4):
        world.step(world.expert(tasks.goals))
    assert ((world.state - tasks.goals).norm(dim=-1) < 0.1).all()


WORLDS = {"two_rooms": RoomsWorld(LAYOUTS), "hazards": HazardRooms(HazardTwoRooms())}


@pytest.mark.parametrize("name", WORLDS)
def test_the_committed_tasks_are_those_of_their_seed(name: str, tmp_path: Path) -> None:
    world = WORLDS[name]
    tasks, drawn = load_tasks(name), room_tasks(world)
    assert all(torch.equal(a, b) for a, b in zip(tasks, drawn, strict=True))
    assert len(tasks.layouts) == 300
    wall = world.layouts.factors(tasks.layouts)[:, 0]
    assert ((tasks.starts[:, 0] < wall) != (tasks.goals[:, 0] < wall)).all()
    assert set(tasks.layouts.tolist()) <= set(world.layouts.ids("held_out").tolist())
    for places in (tasks.starts, tasks.goals):
        world.reset(tasks.layouts, places)
        assert not inside(places[:, None], world.solid).any()
        assert (world.body()[:, 1:] == 0).all()  # it hurts at neither end
    write_tasks(drawn, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (FOLDER / f"{name}.json").read_bytes()


def test_tasks_by_which_a_recipe_was_chosen_are_left_out() -> None:
    rest = load_tasks(skip=290)
    assert torch.equal(rest.starts, load_tasks().starts[290:])
    with pytest.raises(ValueError, match="two_rooms.json has 300 tasks"):
        load_tasks(skip=300)


def test_an_unknown_list_of_tasks_is_named() -> None:
    with pytest.raises(ValueError, match=r"'three_rooms'; choose one of: hazards, .*, two_rooms"):
        load_tasks("three_rooms")


def walked(
    policy: VonMisesWalk, count: int, steps: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, RoomsWorld]:
    """States [B, T + 1, 2] and actions [B, T, 2] of walks in training layouts."""
    generator = torch.Generator().manual_seed(seed)
    ids = LAYOUTS.ids("train")
    layouts = ids[torch.randint(len(ids), (count,), generator=generator)]
    world = RoomsWorld(LAYOUTS)
    observation = world.reset(layouts, policy.reset(world, layouts, generator))
    states, actions = [world.state], []
    for _ in range(steps):
        actions.append(policy.act(observation, world.body()))
        observation = world.step(actions[-1])
        states.append(world.state)
    return torch.stack(states, 1), torch.stack(actions, 1), world


def test_steps_of_a_walk_have_the_asked_lengths_and_repeat_with_the_seed() -> None:
    _, actions, _ = walked(VonMisesWalk(), 200, 20)
    length = actions.norm(dim=-1)
    assert length.min() >= 0.2 - 1e-5
    assert length.max() <= 2.45 + 1e-5
    assert length.mean() == pytest.approx((0.2 + 2.45) / 2, abs=0.05)
    assert torch.equal(actions, walked(VonMisesWalk(), 200, 20)[1])
    assert not torch.equal(actions, walked(VonMisesWalk(), 200, 20, seed=1)[1])


def test_each_walk_that_hurries_has_a_least_length_of_its_own() -> None:
    _, actions, _ = walked(VonMisesWalk(hurry=2.0), 400, 40)
    least, largest = actions.norm(dim=-1).aminmax(dim=1)
    assert largest.mean() > 2.4  # up to the same largest one
    assert least.min() < 0.4
    assert least.max() < 2.0 + 0.45 * 0.3  # the least of 40 lengths is close to the bound they have
    assert least.mean() == pytest.approx((0.2 + 2.0) / 2, abs=0.15)


@pytest.mark.parametrize("restless", [0.0, 1.0])
def test_a_restless_walk_turns_where_it_was_stopped_and_nowhere_else(restless: float) -> None:
    policy = VonMisesWalk(door_share=0.0, erratic=1e4, persistent=1e4, restless=restless)
    states, actions, _ = walked(policy, 200, 60)
    went, meant = states.diff(dim=1).norm(dim=-1), actions.norm(dim=-1)
    heading = torch.atan2(actions[..., 1], actions[..., 0])
    turned = (heading[:, 1:] - heading[:, :-1]).cos() < 0.9  # their own drift is a hundredth of that
    stopped = (went < meant / 2)[:, :-1]
    assert stopped.any()
    assert not turned[~stopped].any()
    assert turned[stopped].float().mean() == pytest.approx(
        restless * (1 - 2 * math.acos(0.9) / (2 * math.pi)), abs=0.05
    )


def test_mean_turn_follows_the_concentration() -> None:
    """E cos(h[t+1] - h[t]) = I1(kappa) / I0(kappa)."""
    for kappa in (0.5, 5.0, 50.0):
        _, actions, _ = walked(VonMisesWalk(erratic=kappa, persistent=kappa), 400, 20)
        heading = torch.atan2(actions[..., 1], actions[..., 0])
        order = torch.tensor(kappa)
        expected = float(torch.special.i1e(order) / torch.special.i0e(order))
        assert heading.diff(dim=1).cos().mean() == pytest.approx(expected, abs=0.03)


def test_episodes_at_the_door_start_near_it_and_mostly_pass_it() -> None:
    states, _, world = walked(VonMisesWalk(door_share=1.0), 400, 30)
    wall, door = LAYOUTS.factors(world.layout_ids).unbind(-1)
    assert ((states[:, 0] - torch.stack([wall, door], -1)).norm(dim=-1) <= 8.0 + 1e-3).all()
    assert not inside(states[:, 0, None], world.solid).any()
    left = states[:, :, 0] < wall[:, None]
    assert (left != left[:, :1]).any(1).float().mean() >= 0.6
    assert 0.4 < left[:, 0].float().mean() < 0.6


def test_the_share_of_episodes_at_the_door_is_the_asked_one() -> None:
    states, _, world = walked(VonMisesWalk(door_share=0.35), 2000, 1)
    near = (states[:, 0] - LAYOUTS.factors(world.layout_ids)).norm(dim=-1) <= 8.0
    chance, _, other = walked(VonMisesWalk(door_share=0.0), 2000, 1)
    base = (chance[:, 0] - LAYOUTS.factors(other.layout_ids)).norm(dim=-1) <= 8.0
    assert float(near.float().mean()) == pytest.approx(0.35 + 0.65 * float(base.float().mean()), abs=0.04)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"door_share": 1.2}, "between 0 and 1"),
        ({"shortest": 3.0, "longest": 2.0}, "0 <= shortest <= longest"),
        ({"erratic": 0.0}, "0 < erratic <= persistent"),
        ({"hurry": 3.0}, "hurry=3.0: give a length between shortest=0.2 and longest=2.45"),
        ({"restless": 1.5}, "restless=1.5: give a chance"),
    ],
)
def test_impossible_walks_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VonMisesWalk(**arguments)


def test_a_walk_through_doors_needs_layouts_with_one() -> None:
    class Courtyard(TwoRoomsLayouts):
        factor_names = ("tree_x", "tree_y")

    world, layouts = RoomsWorld(Courtyard()), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="set door_share=0"):
        VonMisesWalk().reset(world, layouts, torch.Generator())
    assert VonMisesWalk(door_share=0.0).reset(world, layouts, torch.Generator()).shape == (2, 2)
