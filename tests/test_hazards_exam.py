"""The exam of a critic: true costs to go, one bad event, and all its rows on an agent whose answers are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Generator, Tensor, nn

from data_pipelines.worlds.hazards import HazardRooms, HazardTwoRooms
from data_pipelines.worlds.tasks import load_tasks
from lightning_jepa.actor.planners.cem import CEM
from lightning_jepa.agent import Agent
from lightning_jepa.cost.body import Pain
from lightning_jepa.cost.cost import Cost
from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.cost.intrinsic import IntrinsicCost
from lightning_jepa.evaluation.episodes import first_tasks, run_episodes
from lightning_jepa.evaluation.hazards import HazardsExam
from lightning_jepa.evaluation.one_shot import OneShot
from lightning_jepa.evaluation.results import load
from lightning_jepa.evaluation.true_cost import CarefulExpert, cost_to_go
from lightning_jepa.types import Modulation, Tasks, Training

BODY = ("energy_level", "pain")
WIDTH = 2.45


class Position(nn.Module):
    def forward(self, states: Tensor) -> Tensor:
        return states[..., :2]


class Seeing(nn.Module):
    """s = (agent x, y by the spot's centroid | body); imagines no walls, and that pain stays as it is."""

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        pixels = torch.linspace(0, 64, observations.shape[-1])
        spot = observations[:, :, 0].float()
        mass = spot.sum((-1, -2)).clamp_min(1e-6)
        place = torch.stack([spot.sum(-2) @ pixels / mass, spot.sum(-1) @ pixels / mass], -1)
        return torch.cat([place, torch.zeros_like(place) if body is None else body], -1)

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        moved = s[:, None, None].expand(-1, *actions.shape[1:3], -1)
        return moved + nn.functional.pad(actions.cumsum(2), (0, 2))


class Distance(nn.Module):
    """A critic that knows no walls and no hazards: steps to the goal as the crow flies."""

    discount = 0.97

    def forward(self, states: Tensor, modulation: Modulation) -> Tensor:
        away = (states[..., :2] - modulation.goal[:, None, :2]).norm(dim=-1)
        return (1 - self.discount ** (away / 2.45)) / (1 - self.discount)


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.jepa, self.metric, self.critic = Seeing(), Position(), Distance()
        self.intrinsic = intrinsic(self.metric, WIDTH)
        self.cost = Cost(self.intrinsic, {"learned": self.critic}, 0.97)


def intrinsic(metric: nn.Module, width: float | None = None) -> IntrinsicCost:
    return IntrinsicCost({"goal": GoalEnergy(metric, width), "pain": Pain(BODY)})


def world(steps: int = 60) -> HazardRooms:
    return HazardRooms(HazardTwoRooms(), episode_steps=steps)


def tasks(count: int) -> Tasks:
    return first_tasks(load_tasks("hazards"), count)


def test_without_pain_the_cost_to_go_is_the_discounted_way() -> None:
    """V = (1 - gamma^n) / (1 - gamma) for a way of n steps."""
    here, some = world(), tasks(3)
    found = cost_to_go(here, some, 1.0, 0.0, 0.97, WIDTH).at(some.starts[:, None, None])[:, 0, 0, 0]
    here.reset(some.layouts, some.starts)
    steps = here.way_length(some.goals) / here.action_bound
    torch.testing.assert_close(found, (1 - 0.97**steps) / 0.03, rtol=0.08, atol=0.5)


def test_pain_only_adds_and_the_careful_expert_avoids_it() -> None:
    here, some = world(), tasks(6)
    free, dear = (cost_to_go(here, some, 1.0, pain, 0.97, WIDTH, pitch=1.0).values for pain in (0.0, 4.0))
    assert (dear >= free - 1e-3).all()
    assert (dear > free + 0.5).any()
    pains = []
    for u_pain in (0.0, 4.0):
        run = run_episodes(here, some, CarefulExpert(1.0, u_pain, 0.97, WIDTH))
        assert run.final.all()
        here.reset(some.layouts, some.starts)
        pains.append(float(here.share_in(run.positions, here.hazards).sum()))
    assert pains[0] > 1
    assert pains[1] < 0.1 * pains[0]


@pytest.mark.parametrize(("harmless", "low", "high"), [(False, 5.0, 20.0), (True, 0.5, 2.0)])
def test_one_event_is_enough_and_stays_where_it_was(harmless: bool, low: float, high: float) -> None:
    """TC = sum k(s, s_i) u.IC(s[i + 1]) / (prior + sum k): from the background to about u_pain, within the kernel."""
    shots = OneShot(world(), Seeing(), intrinsic(Position(), WIDTH), Position(), bandwidth=1.5)
    rise = shots(6, Generator().manual_seed(0), harmless)
    assert low < rise.near.mean() < high
    assert rise.elsewhere.mean() < 0.1


def exam(**changes: object) -> HazardsExam:
    planner = CEM(24, 2, 5, 6, 2, 2.45)
    settings: dict[str, object] = {
        "world": world(),
        "tasks": tasks(6),
        "planner": planner,
        "long": CEM(24, 2, 5, 36, 2, 2.45),
        "slope": intrinsic,
        "agent": lambda **parts: Agent(replan_every=3, **parts),
        "pain": 0.5,
        "doses": [0, 0.5, 2],
        "episodes": 6,
        "few_episodes": 4,
        "steps": 30,
        "rank_layouts": 2,
        "events": 4,
        "bandwidth": 1.5,
    }
    return HazardsExam(**{**settings, **changes})  # type: ignore[arg-type]


def test_the_exam_of_an_agent_that_knows_no_walls(tmp_path: Path) -> None:
    """It runs into the wall at every horizon; what it does not know of pain, no weight can make it avoid."""
    stage = Stage()
    found = exam().run(stage, 1, tmp_path, Training({"train_seconds": 60.0}))
    assert found["evaluations_ratio"] == pytest.approx(1 / 6)
    assert 0.3 < found["critic_rank_correlation"] < 1
    assert found["short_horizon_with_critic"] < 0.5
    assert found["one_shot_rise"] > 5 * 0.5
    written = load(tmp_path / "seed_1.json")
    assert set(written.tables) == {"horizons", "doses"}
    assert set(written.tables["doses"]) == {"u_pain = 0", "u_pain = 0.5", "u_pain = 2"}
    assert written.floors["expert"].value == 1
    assert written.floors["careful_expert_pain"].value < written.floors["expert_pain"].value
    assert written.controls["one_shot_rise"]["harmless_event"].value < found["one_shot_rise"] / 2
    for name in ("critic", "paths", "dose_response"):
        with Image.open(tmp_path / "figures" / f"{name}.png") as picture:
            picture.load()


def test_what_the_exam_refuses(tmp_path: Path) -> None:
    stage = Stage()
    stage.cost = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="evaluate a checkpoint of train=critic"):
        exam().run(stage, 0, tmp_path, Training())
    other = Stage()
    other.intrinsic = IntrinsicCost({"goal": GoalEnergy()})
    with pytest.raises(ValueError, match=r"has the terms \['goal'\]"):
        exam().run(other, 0, tmp_path, Training())
    with pytest.raises(ValueError, match="at least three weights of pain, rising"):
        exam(doses=[1, 0, 2])
    with pytest.raises(ValueError, match="pain=0.5 among them"):
        exam(doses=[0, 1, 2])
