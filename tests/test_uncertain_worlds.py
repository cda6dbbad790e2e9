"""Worlds where nobody can know what comes next, and their exams on models that know all that can be known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from data_pipelines.worlds.fate import FATES, next_fate
from data_pipelines.worlds.fork import ForkWorld, PillarLayouts
from data_pipelines.worlds.slippery_bridge import CoinToss, SlipperyBridgeWorld, SlipperyLayouts
from lightning_jepa.actor.planners.exhaustive import Exhaustive
from lightning_jepa.actor.planners.scenarios import ScenarioPlanner
from lightning_jepa.evaluation.fork import ForkExam
from lightning_jepa.evaluation.results import load
from lightning_jepa.evaluation.slippery_bridge import SlipperyBridgeExam
from lightning_jepa.types import Training

HALF_TURN = 3.14159265


def begun(world: Any, count: int, seed: int = 0) -> torch.Generator:
    generator = torch.Generator().manual_seed(seed)
    ids = world.layouts.ids("train")
    layouts = ids[torch.randint(len(ids), (count,), generator=generator)]
    if isinstance(world, ForkWorld):
        places = world.sample_states(layouts, torch.randint(2, (count,), generator=generator), generator)
        world.reset(layouts, world.starts(places, generator))
    else:
        world.reset(layouts, world.starts(count, generator))
    return generator


@pytest.mark.parametrize("layouts", [PillarLayouts(), SlipperyLayouts()])
def test_every_fifth_layout_is_held_out(layouts: Any) -> None:
    train, held_out = layouts.ids("train"), layouts.ids("held_out")
    assert not set(train.tolist()) & set(held_out.tolist())
    assert len(held_out) == pytest.approx((len(train) + len(held_out)) / 5, rel=0.02)
    for axis in range(len(layouts.factor_names)):
        seen = [set(layouts.factors(ids)[:, axis].tolist()) for ids in (train, held_out)]
        assert seen[0] == seen[1]
    with pytest.raises(ValueError, match="choose 'train' or 'held_out'"):
        layouts.ids("test")


def test_fates_are_evenly_spread_and_follow_from_each_other() -> None:
    fate = torch.randint(FATES, (2000,), generator=torch.Generator().manual_seed(0)).float()
    seen = [fate]
    for _ in range(20):
        seen.append(next_fate(seen[-1]))
    fates = torch.stack(seen)
    assert ((fates >= 0) & (fates < FATES) & (fates == fates.round())).all()
    assert (fates / FATES).mean() == pytest.approx(0.5, abs=0.01)
    assert abs(float(torch.corrcoef(torch.stack([fates[:-1].flatten(), fates[1:].flatten()]))[0, 1])) < 0.02
    assert torch.equal(next_fate(seen[3]), seen[4])


def test_a_step_turns_left_goes_ahead_or_turns_right() -> None:
    """P = .45, .10, .45 of turning by -60, 0 and 60 degrees."""
    world, turns = ForkWorld(PillarLayouts()), []
    generator = begun(world, 400)
    for _ in range(20):
        before = world.state.clone()
        action = torch.randn(400, 2, generator=generator)
        world.step(action)
        moved = world.state - before
        free = (moved.norm(dim=-1) - action.norm(dim=-1)).abs() < 1e-3
        angle = torch.atan2(moved[:, 1], moved[:, 0]) - torch.atan2(action[:, 1], action[:, 0])
        turns.append(torch.rad2deg((angle[free] + HALF_TURN) % (2 * HALF_TURN) - HALF_TURN))
    degrees = torch.cat(turns)
    assert ((degrees / 60).round() * 60 - degrees).abs().max() < 0.5
    for turn, share in ((-60, 0.45), (0, 0.1), (60, 0.45)):
        assert ((degrees / 60).round() * 60 == turn).float().mean() == pytest.approx(share, abs=0.02)


def test_the_same_state_and_fate_lead_to_the_same_place() -> None:
    worlds = [ForkWorld(PillarLayouts()), ForkWorld(PillarLayouts())]
    for world in worlds:
        begun(world, 8, seed=3)
    for _ in range(5):
        pictures = [world.step(torch.ones(8, 2)) for world in worlds]
        assert torch.equal(pictures[0], pictures[1])


def test_modes_stop_at_the_pillar() -> None:
    world = ForkWorld(PillarLayouts())
    layout = PillarLayouts().ids("train")[:1]
    x, y = PillarLayouts().factors(layout)[0].tolist()
    world.reset(layout, torch.tensor([[x - 5.0, y]]))
    modes = world.modes(world.state[:, None], torch.tensor([[[8.0, 0.0]]]))[0, 0]
    assert modes[:, 0].tolist() == pytest.approx([x - 3.5] * 3, abs=0.01)


@pytest.mark.parametrize("probabilities", [(0.5, 0.5), (0.5, 0.6, -0.1), (0.3, 0.3, 0.3)])
def test_probabilities_are_checked(probabilities: Any) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        ForkWorld(PillarLayouts(), probabilities=probabilities)


def test_a_slip_is_as_likely_as_the_bridge_looks() -> None:
    world = SlipperyBridgeWorld(SlipperyLayouts())
    ways = world.ways()
    assert ((ways - world.middle) / world.unit).square().tolist() == pytest.approx([5.0, 60.0, 20.0], abs=1e-4)
    assert abs(float(ways[:2].mean()) - world.middle) < float((ways[2] - world.middle).abs())
    for tenths in (0, 3, 9):
        ids = torch.full((3000,), tenths * 100)
        world.reset(ids, world.starts(3000, torch.Generator().manual_seed(tenths)))
        river = world.render()[:, 1].amax((1, 2))
        world.step(torch.ones(3000, 1))
        assert (world.state[:, 1] == ways[1]).float().mean() == pytest.approx(tenths / 10, abs=0.03)
        world.reset(ids, world.starts(3000, torch.Generator()))
        world.step(-torch.ones(3000, 1))
        assert (world.state[:, 1] == ways[2]).all()
        assert river[0] >= 255 * (0.1 + 0.9 * tenths / 10) * 0.7


def test_the_safe_way_is_best_from_a_chance_of_three_tenths() -> None:
    world = SlipperyBridgeWorld(SlipperyLayouts())
    expected = world.expected(torch.arange(10) / 10)
    assert expected[5].tolist() == pytest.approx([32.5, 20.0])
    assert (expected.argmin(-1) == 1).tolist() == [False] * 3 + [True] * 7


def test_a_coin_takes_either_way() -> None:
    world, coin = SlipperyBridgeWorld(SlipperyLayouts()), CoinToss()
    world.reset(torch.zeros(500, dtype=torch.long), coin.reset(world, torch.zeros(500), torch.Generator()))
    actions = coin.act(world.render(), world.body())
    assert set(actions.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(actions.mean())) < 0.2


def test_worlds_are_drawn_at_two_resolutions() -> None:
    with pytest.raises(ValueError, match="33 or 65"):
        SlipperyBridgeWorld(SlipperyLayouts(), resolution=40)
    assert SlipperyBridgeWorld(SlipperyLayouts(), resolution=65).observation_shape == (2, 65, 65)


class Seeing(nn.Module):
    """s = the agent's place, pixels, and how slippery the rivers look."""

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        pixels = torch.linspace(0, 64, observations.shape[-1])
        spot, rest = observations[:, :, 0].float(), observations[:, :, 1].float()
        mass = spot.sum((-1, -2))
        place = torch.stack([spot.sum(-2) @ pixels / mass, spot.sum(-1) @ pixels / mass], -1)
        return torch.cat([place, rest[..., 16, [8, 16, 24]] / 255], -1)


class KnowsForks(Seeing):
    """All that can be known, or its mean."""

    def __init__(self, blurred: bool) -> None:
        super().__init__()
        self.blurred, self.noise = blurred, 0 if blurred else 1

    def modes(self, s: Tensor, a: Tensor) -> Tensor:
        angle = torch.deg2rad(torch.tensor([-60.0, 0.0, 60.0]))
        x, y = a[:, None].unbind(-1)
        turned = torch.stack([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], -1)
        ahead = s[:, None] + nn.functional.pad(turned, (0, 3))
        return (ahead * torch.tensor([0.45, 0.1, 0.45])[:, None]).sum(1, keepdim=True) if self.blurred else ahead

    def energy(self, s: Tensor, actions: Tensor, s_y: Tensor) -> Tensor:
        return (self.modes(s, actions[:, 0]) - s_y[:, :1]).square().mean(-1).amin(1)

    def scenarios(self, s: Tensor, actions: Tensor, uniform: Tensor) -> Tensor:
        ahead = self.modes(s, actions[:, 0, 0])
        which = torch.bucketize(uniform[:, 0, 0], torch.tensor([0.45, 0.55])) if self.noise else [0] * len(uniform)
        return ahead[:, which][:, None, :, None]


class Stage(nn.Module):
    def __init__(self, jepa: nn.Module) -> None:
        super().__init__()
        self.jepa = jepa


def test_the_fork_exam_on_who_knows_and_who_averages(tmp_path: Path) -> None:
    exam = ForkExam(world=ForkWorld(PillarLayouts()), transitions=300, samples=100, angles=13)
    knows = exam.run(Stage(KnowsForks(blurred=False)), 0, tmp_path / "knows", Training())
    averages = exam.run(Stage(KnowsForks(blurred=True)), 0, tmp_path / "averages", Training())
    assert knows["mode_recall"] > 0.99
    assert knows["auroc_true_against_average"] > 0.99
    assert knows["calibration_error"] < 0.05
    assert knows["sample_precision"] > 0.99
    assert knows["auroc_true_against_between"] > 0.99
    assert knows["auroc_true_against_another"] > 0.95
    assert knows["best_of_samples"] < 0.01
    # E|x - y|^2 = 2 Var of two draws of the same futures, and the mean of them is off by Var
    assert knows["expected_error"] == pytest.approx(2 * averages["expected_error"], rel=0.1)
    assert averages["best_of_samples"] == pytest.approx(averages["expected_error"])
    assert averages["auroc_true_against_average"] < 0.1
    assert averages["mode_recall"] < 0.5
    assert averages["auroc_true_against_back"] > 0.9  # which is why this row alone would not tell them apart
    table = load(tmp_path / "knows" / "seed_0.json").tables["continuum"]
    energies = {float(angle): row["energy"].value for angle, row in table.items()}
    assert max(energies[angle] for angle in (-60.0, 0.0, 60.0)) < 0.3 * energies[180.0]
    with Image.open(tmp_path / "knows" / "figures" / "continuum.png") as picture:
        assert picture.width > 300


def test_transitions_of_another_draw_are_others(tmp_path: Path) -> None:
    """Draw 3 of an exam that begins at 0 is draw 0 of one that begins at 3."""
    found = {}
    for first, seed in ((0, 0), (0, 3), (3, 0)):
        exam = ForkExam(world=ForkWorld(PillarLayouts()), transitions=50, samples=20, angles=3, first_draw=first)
        found[first, seed] = exam.run(Stage(KnowsForks(blurred=True)), seed, tmp_path, Training())["energy_true"]
    assert found[3, 0] == pytest.approx(found[0, 3])
    assert found[3, 0] != pytest.approx(found[0, 0])


class KnowsBridges(Seeing):
    """All that can be known, or its mean."""

    def __init__(self, blurred: bool) -> None:
        super().__init__()
        self.blurred, self.noise = blurred, 1
        self.ways = SlipperyBridgeWorld(SlipperyLayouts()).ways()

    def outcomes(self, s: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        crossing = ((s[:, 0] - 8) / 16).round().long().clamp(0, 2)
        slip = ((s[torch.arange(len(s)), 2 + crossing] - 0.1) / 0.9).clamp(0, 1)
        chances = torch.stack([1 - slip, slip], -1)
        y = torch.where(actions > 0, self.ways[:2], self.ways[2])
        ahead = s[:, None].repeat(1, 2, 1)
        ahead[..., 0] += 16
        ahead[..., 1] = y
        if self.blurred:
            return (ahead * chances[..., None]).sum(1, keepdim=True), torch.ones(len(s), 1)
        return ahead, chances

    def scenarios(self, s: Tensor, actions: Tensor, uniform: Tensor) -> Tensor:
        b, candidates, horizon = actions.shape[:3]
        now = s.repeat_interleave(candidates * len(uniform), 0)
        states = []
        for t in range(horizon):
            act = actions[:, :, t].flatten(0, 1).repeat_interleave(len(uniform), 0)
            ahead, chances = self.outcomes(now, act)
            which = (uniform[:, t, 0].repeat(b * candidates)[:, None] >= chances.cumsum(1)[:, :-1]).sum(1)
            now = ahead[torch.arange(len(now)), which]
            states.append(now)
        return torch.stack(states, 1).view(b, candidates, len(uniform), horizon, -1)


def test_the_bridge_exam_on_who_knows_and_who_averages(tmp_path: Path) -> None:
    """Tree search over what may happen is expectimax; the mean of both futures looks better than the safe way."""
    exam = SlipperyBridgeExam(
        world=SlipperyBridgeWorld(SlipperyLayouts()),
        scenarios=ScenarioPlanner(Exhaustive([[1.0], [-1.0]], 3), 32),
        simulations=60,
        decisions=20,
        kappas=[0.0, 2.0],
        probed=300,
    )
    knows = exam.run(Stage(KnowsBridges(blurred=False)), 0, tmp_path / "knows", Training())
    averages = exam.run(Stage(KnowsBridges(blurred=True)), 0, tmp_path / "averages", Training())
    assert knows["safe_choice"] == 1
    assert knows["safe_choice_scenarios"] > 0.9
    assert knows["bridge_choice_where_slips_are_rare"] > 0.9
    assert knows["tree_search_regret"] < 0.02
    assert averages["safe_choice"] == 0
    assert averages["tree_search_regret"] > 0.1
    tables = load(tmp_path / "knows" / "seed_0.json").tables
    assert tables["kappas"]["kappa = 0"]["safe"].value < 0.3  # at a chance of .2 the bridge costs 16, the safe way 20
    assert tables["kappas"]["kappa = 2"]["safe"].value > 0.7  # with two deviations of 22
    assert (tmp_path / "knows" / "figures" / "risk.png").is_file()
