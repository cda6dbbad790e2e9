"""The exam of a hierarchy, on one whose answers are known: level 1 sees the agent and the light, level 2 the agent.

Level 1 knows the walls, level 2 does not: true subgoals lead to the goal, its own into the next wall.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torch import Generator, Tensor, nn, ones, stack

from data_pipelines.worlds.distraction import DistractedRooms
from data_pipelines.worlds.mazes import MazeLayouts
from data_pipelines.worlds.rooms import RoomsWorld
from data_pipelines.worlds.tasks import load_tasks
from data_pipelines.worlds.walks import VonMisesWalk
from lightning_jepa.actor.planners.cem import CEM
from lightning_jepa.actor.planners.hierarchical import HierarchicalPlanner
from lightning_jepa.agent import Agent
from lightning_jepa.build import build
from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.cost.subgoal import SubgoalEnergy
from lightning_jepa.evaluation import levels
from lightning_jepa.evaluation.hierarchy import HierarchyExam
from lightning_jepa.evaluation.results import load
from lightning_jepa.evaluation.subgoals import JudgedAbove
from lightning_jepa.evaluation.walks import collected
from lightning_jepa.paths import CONF
from lightning_jepa.types import Modulation, Training

STEPS = 4  # of level 1 in one of level 2


class Above(nn.Module):
    """Level 2: s2 = (x, y); a white macro-action is a displacement in steps of full length."""

    action_size, steps = 2, STEPS

    def __init__(self) -> None:
        super().__init__()
        self.metric, self.reach = nn.Identity(), None

    def white(self, actions: Tensor) -> Tensor:
        return actions

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        return observations[..., :2]

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        return s[:, None, None] + 2.45 * STEPS * actions.cumsum(2)


class Tower(nn.Module):
    """Level 1: s = (x, y, light), where the spot's centroid is; it moves as in the world."""

    depth = 2

    def __init__(self, world: RoomsWorld) -> None:
        super().__init__()
        self.world = world

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        pixels = torch.linspace(0, 64, observations.shape[-1])
        spot = observations[:, :, 0].float()
        mass = spot.sum((-1, -2)).clamp_min(1e-6)
        light = observations[:, :, 2].float().sum((-1, -2)) / mass
        return torch.stack([spot.sum(-2) @ pixels / mass, spot.sum(-1) @ pixels / mass, 60 * light], -1)

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        at, path = s[:, None, :2].expand(-1, actions.shape[1], -1), []
        for action in actions.unbind(2):
            at = self.world.advance(at, action)
            path.append(torch.cat([at, s[:, None, 2:].expand(-1, actions.shape[1], -1)], -1))
        return torch.stack(path, 2)

    def lift(self, states: Tensor, number: int) -> Tensor:
        return states if number == 1 else states[..., :2]

    def stride(self, number: int) -> int:
        return STEPS

    def above(self, number: int) -> Above:
        return Above()

    def predicted(self, s: Tensor, actions: Tensor, number: int) -> Tensor:
        path = s[:, None, :2] + actions.cumsum(1)
        light = s[:, None, 2:].expand(-1, path.shape[1], -1)
        return torch.cat([path, light], -1) if number == 1 else path[:, STEPS - 1 :: STEPS]


class Stage(nn.Module):
    def __init__(self, world: RoomsWorld) -> None:
        super().__init__()
        self.jepa = Tower(world)
        self.metric = nn.Identity()
        self.cost: Any = None


def low() -> CEM:
    return CEM(16, 2, 4, 4, 2, 2.45)


def exam(**changes: Any) -> HierarchyExam:
    make = partial(HierarchicalPlanner, goal=GoalEnergy, subgoal=SubgoalEnergy, hold=1)
    settings: dict[str, Any] = {
        "world": DistractedRooms(MazeLayouts()),
        "tasks": [load_tasks("maze_5_7")],
        "classes": ["5_7"],
        "planner": make(planners={"level1": low(), "level2": CEM(32, 2, 6, 3, 2, 1.0)}),
        "planners": {"smaller": make(planners={"level1": low(), "level2": CEM(8, 2, 2, 3, 2, 1.0)})},
        "walker": VonMisesWalk(door_share=0.0),
        "ahead": STEPS,
        "flat": {"cem": low(), "cem_long": CEM(24, 3, 6, 30, 2, 2.45)},
        "search": low(),
        "cost": GoalEnergy,
        "agent": lambda **parts: Agent(replan_every=2, noise=0.3, **parts),
        "distractor": "light",
        "macro_bound": 1.0,
        "episodes": 10,
        "few_episodes": 6,
        "steps": 80,
        "horizon": 8,
        "fit_walks": 60,
        "test_walks": 30,
    }
    return HierarchyExam(**{**settings, **changes})


def test_a_critic_of_level_2_is_tried_without_plans_of_level_2(tmp_path: Path) -> None:
    """C(s2) of where level 1's plan ends, and nothing of what comes before."""
    asked = JudgedAbove(GoalEnergy(), lambda states: states[..., :2])
    states, goal = torch.randn(2, 3, 4, 3), torch.randn(2, 3)
    found = asked(states, torch.zeros(2, 3, 4, 2), Modulation(goal))
    assert not found[:, :, :-1].any()
    torch.testing.assert_close(found[:, :, -1], (states[:, :, -1, :2] - goal[:, None, :2]).square().mean(-1))

    make = partial(HierarchicalPlanner, goal=GoalEnergy, subgoal=SubgoalEnergy, hold=1, judged=2)
    made = exam(planner=make(planners={"level1": low(), "level2": CEM(32, 2, 6, 3, 2, 1.0)}), planners={}, steps=8)
    stage = Stage(made.world)
    stage.cost = GoalEnergy()
    made.run(stage, 0, tmp_path, Training())
    table = load(tmp_path / "seed_0.json").tables["5_7"]
    assert table["critic_alone"]["evaluations"].value == table["flat_cem"]["evaluations"].value


class Blind(Tower):
    """Sees nothing: what a level with random weights may come to."""

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        return 0 * super().encode(observations, body)


def test_all_rows_of_a_hierarchy_that_knows_no_walls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = exam()
    monkeypatch.setattr(levels, "randomised", lambda model, seed: Blind(model.world))
    found = made.run(Stage(made.world), 3, tmp_path, Training({"train_seconds": 60.0}))
    assert found["distractor_probe_s1"] > 0.99
    assert found["distractor_probe_s2"] < 0.1
    assert found["room_probe_s2"] > 0.99
    assert found["level2_error_8"] == pytest.approx(found["level1_error_8"], abs=0.1)
    written = load(tmp_path / "seed_3.json")
    rows = {name: row["success"].value for name, row in written.tables["5_7"].items()}
    assert rows["oracle_subgoals"] >= 0.6
    assert set(rows) > {"hierarchical", "hierarchical_smaller", "flat_cem", "flat_cem_long"}
    assert found["hierarchical_success_5_7"] == rows["hierarchical"]
    assert found["gain_over_flat"] == rows["headline_on_the_tasks_of_others"] - rows["flat_cem"]
    assert written.tables["5_7"]["headline_on_the_tasks_of_others"]["success"].n == 6
    assert found["level2_gain_8"] == pytest.approx(found["level1_error_8"] - found["level2_error_8"])
    assert rows["random_subgoals"] <= 0.3
    assert written.floors["expert_5_7"].value == 1
    evaluations = {name: row["evaluations"].value for name, row in written.tables["5_7"].items()}
    assert evaluations["hierarchical"] == (16 * 2 * 4 + 32 * 2 * 3) / 2
    assert evaluations["flat_cem"] == 16 * 2 * 4 / 2
    assert evaluations["oracle_subgoals"] == 16 * 2 * 4 / 2
    assert evaluations["random_subgoals"] == (16 * 2 * 4 + 1) / 2
    errors = {name: row["8 steps"].value for name, row in written.tables["errors"].items()}
    for level in ("level 1", "level 2"):
        assert errors[level] == pytest.approx(found[f"{level.replace(' ', '')}_error_8"])
        assert errors[f"{level}, actions of another walk"] > 2 * errors[level]
        assert errors[f"{level}, staying"] > 1.2 * errors[level]  # it knows of no walls, and these are thick
    assert written.tables["levels"]["level 2"]["agent_x"].value > 0.99
    assert written.tables["levels"]["level 2, random weights"]["agent_x"].value < 0.1
    for name in ("levels", "paths"):
        with Image.open(tmp_path / "figures" / f"{name}.png") as picture:
            picture.load()


def test_of_the_lamp_a_level_of_long_steps_is_told_nothing() -> None:
    """As the exam's walks are made: who knows the step knows the lamp, where the next five lead does not tell it."""
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", ["experiment=maze"])
    walks = collected(build(cfg.world), "train", 2000, 15, build(cfg.collection.policy), Generator().manual_seed(0))
    lamp, length = walks.truth[..., -1], walks.actions.norm(dim=-1)
    torch.testing.assert_close(lamp[:, 1:], (torch.pi * length / cfg.world.action_bound).sin().square())
    assert lamp[:, 1:].std() > 0.3

    led = walks.actions[:, 5:10].mean(1)  # after the lamp at 5
    told = stack([*led.T, led.norm(dim=-1), ones(len(led))], 1)
    assert foretold(told, lamp[:, 5]) < 0.02


def foretold(told: Tensor, wanted: Tensor) -> float:
    """R2 on the second half of a linear fit to the first."""
    half = len(told) // 2
    weights = torch.linalg.lstsq(told[:half], wanted[:half, None]).solution[:, 0]
    return 1 - float((wanted[half:] - told[half:] @ weights).square().mean() / wanted[half:].var(correction=0))


def test_levels_whose_steps_do_not_fit_are_found_before_anything_is_measured(tmp_path: Path) -> None:
    made = exam(horizon=12)
    with pytest.raises(ValueError, match="set evaluation.horizon to an even multiple of 4"):
        made.run(Stage(made.world), 0, tmp_path, Training())


def test_one_level_is_no_hierarchy(tmp_path: Path) -> None:
    made = exam()
    stage = Stage(made.world)
    stage.jepa.depth = 1
    with pytest.raises(ValueError, match="evaluate a checkpoint of train=level2"):
        made.run(stage, 0, tmp_path, Training())


def test_a_planner_with_more_levels_than_there_are_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    make = partial(HierarchicalPlanner, goal=GoalEnergy, subgoal=SubgoalEnergy)
    made = exam(planners={"three": make(planners={f"level{number}": low() for number in (1, 2, 3)})})
    with pytest.raises(
        ValueError, match=r"planner 'three' has 3 levels, the checkpoint 2: .*~evaluation\.planners\.three"
    ):
        made.run(Stage(made.world), 0, tmp_path, Training())


def test_a_planner_without_subgoals_is_refused() -> None:
    with pytest.raises(ValueError, match="choose planner=hierarchical"):
        exam(planner=low())


def test_a_planner_that_asks_a_critic_which_is_not_there_is_refused(tmp_path: Path) -> None:
    make = partial(HierarchicalPlanner, goal=GoalEnergy, subgoal=SubgoalEnergy)
    made = exam(planners={"judged": make(planners={"level1": low(), "level2": low()}, judged=2)})
    with pytest.raises(
        ValueError, match="judged: asks a critic of a level above the first, .*planner=hierarchical_graph"
    ):
        made.run(Stage(made.world), 0, tmp_path, Training())


def test_a_critic_that_no_level_asks_is_refused(tmp_path: Path) -> None:
    made = exam()
    stage = Stage(made.world)
    stage.cost = GoalEnergy()
    with pytest.raises(ValueError, match=r"set planner\.judged"):
        made.run(stage, 0, tmp_path, Training())


def test_walks_to_probe_on_are_those_that_were_collected() -> None:
    """Level 2's chunks are as long as in training; a walk of its own each, and nothing moves without its action."""
    world, walker = DistractedRooms(MazeLayouts()), VonMisesWalk(door_share=0.0)
    walks = collected(world, "held_out", 50, 40, walker, Generator().manual_seed(0))
    assert walks.observations.shape[:2] == (50, 41)
    assert set(walks.layouts.tolist()) <= set(world.layouts.ids("held_out").tolist())
    lengths = walks.actions.norm(dim=-1)
    assert 1.2 < lengths.mean() < 1.45  # uniform between .2 and 2.45
    moved = (walks.positions[:, 1:] - walks.positions[:, :-1]).norm(dim=-1)
    assert (moved <= lengths + 1e-4).all()
