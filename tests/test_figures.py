"""Pictures are drawn and say what they should, and the exam E1 runs end to end on a model whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from data_pipelines.worlds.rooms import RoomsWorld, TwoRoomsLayouts
from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.evaluation import figures
from lightning_jepa.evaluation.animation import Film, picture, save_gif
from lightning_jepa.evaluation.energy_figures import collapse_figure, spaced
from lightning_jepa.evaluation.portraits import Overheard, Overseen
from lightning_jepa.evaluation.results import Rows, load, mean, merge, proportion
from lightning_jepa.evaluation.two_rooms import TwoRoomsExam
from lightning_jepa.evaluation.world_model_exam import WorldModelExam
from lightning_jepa.types import Modulation, Plan, Tasks, Training

EXAM_KEYS = {
    "mode2_success",
    "ms_per_decision",
    "rollout_error_px_16",
    "probe_agent_r2",
    "probe_wall_r2",
    "probe_door_r2",
    "wall_leak_rate",
    "door_pass_rate",
    "cost_rank_correlation",
}


class Blind(nn.Module):
    """s = (agent x, y by the spot's centroid | wall column and door row by centroids); imagines without walls."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        pixels = torch.linspace(0, 64, observations.shape[-1])
        spot, walls = observations[:, :, 0].float(), observations[:, :, 1, 4:-4, 4:-4].float()
        mass = spot.sum((-1, -2)).clamp_min(1e-6)
        x, y = spot.sum(-2) @ pixels / mass, spot.sum(-1) @ pixels / mass
        column, gap = walls.sum(-2), 255 - walls.amax(-1)
        wall = column @ pixels[4:-4] / column.sum(-1).clamp_min(1e-6)
        door = gap @ pixels[4:-4] / gap.sum(-1).clamp_min(1e-6)
        return torch.stack([x, y, wall, door], -1) * self.gain

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        moved = s[:, None, None].expand(-1, *actions.shape[1:3], -1)
        return moved + torch.nn.functional.pad(actions.cumsum(2), (0, s.shape[-1] - 2))


class Straight:
    """One plan: four full steps straight at the goal, among two candidates."""

    def __init__(self, metric: nn.Module | None = None) -> None:
        self.metric = metric

    def plan(self, s, world_model, cost, modulation, start=None, generator=None) -> Plan:
        way = modulation.goal[:, :2] - s[:, :2]
        step = 2.4 * way / way.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        actions = step[:, None, None].expand(-1, 2, 4, -1)
        states = world_model.rollout(s, actions)
        total = cost(states, actions, modulation).sum(-1)
        return Plan(actions[:, 0], states[:, 0], total[:, 0], 8)


class Cycle:
    """The agent at its smallest."""

    def __init__(self, world_model, cost, planner, seed: int, policy=None, mode: str = "deliberate", noise=0.5) -> None:
        self.world_model, self.cost, self.planner, self.evaluations = world_model, cost, planner, 0
        self.policy, self.reactive = policy, mode == "reactive"

    def reset(self, goal_observations: Tensor) -> None:
        self.modulation = Modulation(goal=self.world_model.encode(goal_observations[:, None])[:, 0])

    def act(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        s = self.world_model.encode(observations[:, None])[:, 0]
        if self.reactive:
            return self.policy.act(s, self.modulation)
        plan = self.planner.plan(s, self.world_model, self.cost, self.modulation)
        self.evaluations += plan.evaluations
        return plan.actions[:, 0].detach()


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.jepa, self.metric, self.cost, self.policy = Blind(), nn.Identity(), None, None


class Expert(nn.Module):
    """A policy that walks straight at the goal until it was taught something else: then as little as it knows."""

    def __init__(self) -> None:
        super().__init__()
        self.taught = nn.Linear(1, 2, bias=False)
        nn.init.zeros_(self.taught.weight)

    def act(self, s: Tensor, modulation: Modulation) -> Tensor:
        way = modulation.goal[:, :2] - s[:, :2]
        straight = 2.4 * way / way.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        return straight if not self.taught.weight.any() else self.taught(torch.ones(len(s), 1))

    def misfit(self, s: Tensor, modulation: Modulation, planned: Tensor) -> Tensor:
        return (self.taught(torch.ones(len(s), 1)) - planned).square().sum(-1)


class East:
    """Whoever collected the data, it always went the same way."""

    def reset(self, world, layouts, generator) -> Tensor:
        return world.sample_states(layouts, torch.zeros_like(layouts), generator)

    def act(self, observations: Tensor, body: Tensor) -> Tensor:
        return torch.tensor([2.0, 0.0]).expand(len(observations), 2)


@pytest.fixture
def world() -> RoomsWorld:
    return RoomsWorld(TwoRoomsLayouts(), episode_steps=30)


def some_tasks(world: RoomsWorld, count: int = 6) -> Tasks:
    g = torch.Generator().manual_seed(0)
    ids = world.layouts.ids("held_out")[:count]
    rooms = torch.arange(count) % 2
    starts, goals = world.sample_states(ids, rooms, g), world.sample_states(ids, 1 - rooms, g)
    return Tasks(ids, starts, goals)


def exam(world: RoomsWorld, **changes) -> TwoRoomsExam:
    settings = {
        "world": world,
        "tasks": some_tasks(world),
        "planner": Straight(),
        "quarter": Straight(),
        "planners": {"straight": Straight},
        "search": Straight(),
        "larger": Straight,
        "cost": GoalEnergy,
        "agent": Cycle,
        "walker": East(),
        "episodes": 6,
        "planner_episodes": 4,
        "diagnosis_episodes": 2,
        "probe_walks": 200,
        "test_walks": 40,
        "pushes": 50,
        "rank_layouts": 3,
        "targets": {"mode2_success": {"label": "success", "at_least": 0.9}},
    }
    return TwoRoomsExam(**{**settings, **changes})


def test_the_exam_tells_a_model_that_sees_all_and_knows_no_walls(world, tmp_path):
    """Perfect perception, no walls imagined: probes right, every push leaks, every door passes, controls are worse."""
    found = exam(world).run(Stage(), 3, tmp_path, Training({"train_seconds": 60.0, "train_transitions": 200_000}))
    assert set(found) >= EXAM_KEYS
    assert found["mode2_success_200k"] == found["mode2_success"]
    assert found["probe_agent_r2"] > 0.99
    assert found["probe_wall_r2"] > 0.99
    assert found["wall_leak_rate"] == 1
    assert found["door_pass_rate"] == 1
    assert found["rollout_error_px_16_contact"] > found["rollout_error_px_1"]
    written = load(tmp_path / "seed_3.json")
    assert written.seeds == [3]
    assert written.cost["train_seconds"] == 60
    assert written.metrics["mode2_success"].n == 6
    assert {key for key in written.floors if not key.endswith("_ever")} == {
        "random",
        "straight",
        "drunkard",
        "true_dynamics_raw_distance",
        "expert",
    }
    assert written.floors["expert_ever"].value == 1
    controls = written.controls
    assert controls["wall_leak_rate"]["true_dynamics"].value == 0
    assert controls["door_pass_rate"]["true_dynamics"].value == 1
    assert controls["rollout_error_px_16"]["copy_last"].value > found["rollout_error_px_16"]
    assert controls["rollout_error_px_16"]["shuffled_actions"].value > found["rollout_error_px_16"]
    assert set(controls["probe_agent_r2"]) == {"random_encoder"}
    assert set(written.tables["planners"]) == {"agent", "straight"}
    assert written.tables["planners"]["straight"]["evaluations"].value == 8
    assert len(written.tables["diagnosis"]) == 6
    assert "modes" not in written.tables
    pictures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert pictures == [
        "episodes.gif",
        "landscape.png",
        "landscape_goal_energy.png",
        "plans.png",
        "rollouts.png",
        "success.png",
    ]


def test_the_exam_tells_the_modes_apart(world, tmp_path):
    """A policy that is as good as Mode-2 in reactive mode; its clone of walks to the east only ever goes east."""
    stage = Stage()
    stage.cost, stage.policy = GoalEnergy(), Expert()
    few = {"planners": {}, "diagnosis_episodes": 0, "probe_walks": 40, "rank_layouts": 1}
    small = exam(world, cloning={"episodes": 4, "updates": 300, "batch": 16}, **few)
    found = small.run(stage, 0, tmp_path, Training())
    written = load(tmp_path / "seed_0.json")
    modes = written.tables["modes"]
    assert found["mode1_success"] == found["mode2_success"] == modes["quarter_cold"]["success"].value
    assert found["behaviour_cloning_success"] == 0
    times = [modes[mode]["ms_per_decision"].value for mode in ("mode2", "mode1")]
    assert found["mode1_speedup"] == pytest.approx(times[0] / times[1])
    assert set(written.controls["warm_start_success_quarter"]) == {"cold_start", "untrained_policy"}
    assert not stage.policy.taught.weight.any()  # the exam taught a copy


def test_the_same_seed_gives_the_same_numbers_and_seeds_merge(tmp_path):
    short = RoomsWorld(TwoRoomsLayouts(), episode_steps=4)
    few = {"episodes": 2, "planner_episodes": 1, "diagnosis_episodes": 0, "probe_walks": 40, "rank_layouts": 1}
    small = exam(short, planners={}, larger=None, tasks=some_tasks(short, 2), **few)
    much = Training({"train_transitions": 200_001})
    for folder in ("a", "b"):
        assert "mode2_success_200k" not in small.run(Stage(), 0, tmp_path / folder, much)
    first, second = (load(tmp_path / folder / "seed_0.json") for folder in ("a", "b"))
    timed = "ms_per_decision"
    assert {k: v for k, v in first.metrics.items() if k != timed} == {
        k: v for k, v in second.metrics.items() if k != timed
    }
    assert first.floors == second.floors
    assert "diagnosis" not in first.tables
    small.run(Stage(), 1, tmp_path, much)
    merged = merge([tmp_path / "a" / "seed_0.json", tmp_path / "seed_1.json"], tmp_path / "two_rooms.json")
    assert merged.metrics["mode2_success"].n == 4
    assert merged.seeds == [0, 1]


def test_the_control_needs_weights_to_randomise(world):
    class Bare:
        encode, rollout = Blind().encode, Blind().rollout

    with pytest.raises(ValueError, match="randomise for the control"):
        WorldModelExam(world, 20, 10, 10, 2).run(Bare(), GoalEnergy(), lambda s, goal: GoalEnergy(), 0)


def test_overheard_and_overseen_pass_everything_on():
    model, planner = Overheard(Blind(), keep=1), Overseen(Straight())
    s, goal = torch.zeros(2, 4), torch.ones(2, 4)
    plan = planner.plan(s, model, GoalEnergy(), Modulation(goal=goal))
    assert planner.last is plan
    assert model.candidates.shape == (2, 1, 4, 4)
    torch.testing.assert_close(model.candidates[:, 0], plan.states)
    assert model.encode(torch.zeros(1, 1, 2, 33, 33, dtype=torch.uint8)).shape == (1, 1, 4)


def test_the_success_figure_draws_one_bar_a_row(tmp_path):
    rows = {"random": proportion(1, 300), "drunkard": proportion(120, 300), "agent": proportion(290, 300)}
    figures.success_figure(tmp_path / "new" / "success.png", rows, ("agent",), "Success", target=0.97)
    image = np.asarray(Image.open(tmp_path / "new" / "success.png").convert("RGB"))
    blue = (np.abs(image.astype(int) - [0, 114, 178]).sum(-1) < 12).sum()
    grey = (np.abs(image.astype(int) - [184, 190, 198]).sum(-1) < 12).sum()
    assert blue > 2 * grey > 0


def test_the_agents_picture_is_light_with_dark_walls_and_an_orange_agent(world):
    layouts = world.layouts.ids("train")[:1]
    shown = picture(world.reset(layouts, torch.tensor([[12.0, 40.0]]))[0])
    assert shown.shape == (33, 33, 3)
    assert shown.min() >= 0
    assert shown.max() <= 1
    assert (shown[30, 1] > 0.95).all() or (shown[1, 1] > 0.95).all()
    red, green, blue = shown[20, 6]
    assert red > green > blue


def test_a_film_ends_soon_after_the_last_arrival(world, tmp_path):
    tasks = some_tasks(world, 2)
    path = torch.lerp(tasks.starts[:, None], tasks.goals[:, None], torch.linspace(0, 1, 11)[None, :, None])
    path = torch.cat([path, path[:, -1:].expand(-1, 90, -1)], 1)
    frames = torch.zeros(2, 101, 2, 33, 33, dtype=torch.uint8)
    save_gif(tmp_path / "film.gif", Film(frames, path, tasks.goals, path[:, :, None].expand(-1, -1, 3, -1)), rate=4)
    with Image.open(tmp_path / "film.gif") as image:
        assert 5 <= image.n_frames <= 10


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_names_beside_lines_lie_apart_in_the_order_of_the_lines(heights: list[float]) -> None:
    moved = spaced(np.array(heights), 0.05)
    order = np.argsort(heights, kind="stable")
    assert (np.diff(moved[order]) >= 0.05 - 1e-9).all()
    assert moved.max() <= 1 + 1e-9
    assert moved.min() >= -1e-9
    if len(heights) == 1 or np.diff(np.sort(heights)).min() >= 0.05:
        np.testing.assert_allclose(moved, heights)


def test_a_collapse_is_drawn_to_a_point_and_to_few_directions(tmp_path: Path) -> None:
    def curve(rank: float, spread: float) -> dict[str, Rows]:
        return {str(step): {"effective_rank": mean([rank]), "largest_std": mean([spread])} for step in (100, 200)}

    collapse_figure(tmp_path / "c.png", {"one_way": curve(20.0, 1.0), "none": curve(1.0, 1e-4)})
    with Image.open(tmp_path / "c.png") as drawn:
        assert drawn.width > 2 * drawn.height
