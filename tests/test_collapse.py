"""The exam E2 on a model that sees everything and on one whose states have collapsed."""

from __future__ import annotations

import json

import pytest
import torch
from observers import Centroid, Cycle, Sampler
from PIL import Image
from torch import Tensor, nn

from data_pipelines.worlds.rooms import RoomsWorld, TwoRoomsLayouts
from lightning_jepa.evaluation.collapse import CollapseExam
from lightning_jepa.types import Tasks, Training


class Sees(nn.Module):
    """Knows where the agent is, where wall and door are, and no contact."""

    def __init__(self) -> None:
        super().__init__()
        self.centroid, self.noise = Centroid(), 0

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        wall = observations[:, :, 1, 4:-4, 4:-4].float() / 255  # without the border
        pixels = torch.arange(wall.shape[-1]).float()
        x = (wall.sum(-2) @ pixels) / wall.sum((-1, -2))
        closed = wall.amax(-1)
        y = ((1 - closed) @ pixels) / (1 - closed).sum(-1).clamp_min(1e-6)
        return torch.cat([self.centroid.encode(observations), x[..., None], y[..., None]], -1)

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        here = s[:, None, None].expand(-1, *actions.shape[1:3], -1).clone()
        here[..., :2] += actions.cumsum(2)
        return here

    def energy(self, s: Tensor, actions: Tensor, s_y: Tensor) -> Tensor:
        return (self.rollout(s, actions[:, None])[:, 0] - s_y).square().mean((1, 2))


class Blind(Sees):
    """All states are one: every prediction is right."""

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        return torch.zeros(*observations.shape[:2], 4)

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        return torch.zeros(len(s), *actions.shape[1:3], 4)


class Stage(nn.Module):
    def __init__(self, jepa: nn.Module) -> None:
        super().__init__()
        self.jepa, self.metric = jepa, nn.Identity()


@pytest.fixture
def exam() -> CollapseExam:
    world = RoomsWorld(TwoRoomsLayouts(), episode_steps=30)
    ids = world.layouts.ids("held_out")[:6]
    draw = torch.Generator().manual_seed(0)
    room = torch.zeros(6, dtype=torch.long)  # of start and goal
    tasks = Tasks(ids, world.sample_states(ids, room, draw), world.sample_states(ids, room, draw))
    return CollapseExam(
        world=world,
        tasks=tasks,
        planner=lambda metric: Sampler(),
        agent=lambda seed, **parts: Cycle(**parts),
        episodes=6,
        probe_walks=200,
        test_walks=60,
        targets={"mode2_success": {"label": "success"}},
    )


def test_collapse_shows_in_every_row(exam, tmp_path):
    """Rank of four factors against one of nothing; energies that tell continuations apart against equal ones (.5)."""
    training = Training(
        {"train_seconds": 5.0},
        {"monitor/effective_rank": [[10, 1.5], [20, 3.0]], "monitor/largest_std": [[10, 0.1], [20, 0.2]]},
    )
    sees = exam.run(Stage(Sees()), 0, tmp_path / "sees", training)
    blind = exam.run(Stage(Blind()), 0, tmp_path / "blind", Training())
    assert sees["effective_rank"] > 2
    assert sees["smallest_std"] > 0.5
    assert blind["effective_rank"] <= 1.001
    assert blind["largest_std"] == 0
    for factor in ("agent", "wall", "door"):
        assert sees[f"probe_{factor}_r2"] > 0.75
        assert blind[f"probe_{factor}_r2"] < 0.1
    assert sees["auroc_other_actions"] > 0.8  # where both ways end at the same wall, nothing tells them apart
    assert sees["auroc_other_place"] > 0.95
    assert blind["auroc_other_actions"] == blind["auroc_other_place"] == 0.5
    assert sees["mode2_success"] >= 5 / 6 > blind["mode2_success"]
    written = json.loads((tmp_path / "sees" / "seed_0.json").read_text())
    told = {step: [row[key]["value"] for key in row] for step, row in written["tables"]["training"].items()}
    assert told == {"10": [1.5, 0.1], "20": [3.0, 0.2]}
    assert set(written["floors"]) == {"random", "straight", "drunkard"}
    assert sees["train_seconds"] == 5
    with Image.open(tmp_path / "sees" / "figures" / "collapse.png") as picture:
        assert min(picture.size) > 300
    assert not (tmp_path / "blind" / "figures").exists()  # no curve was kept


def test_success_can_be_left_out(exam, tmp_path):
    exam.tasks = None
    assert "mode2_success" not in exam.run(Stage(Sees()), 0, tmp_path, Training())
