"""F(x, y) as an interface: ranking, surprise, and the exam of real video on a model that knows how things move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lightning_jepa.evaluation.ranking import auroc, share_told
from lightning_jepa.evaluation.results import load
from lightning_jepa.evaluation.street import StreetExam
from lightning_jepa.types import Training
from lightning_jepa.world_model.energy import rank, surprise


class Inertia(nn.Module):
    """Things go on as they did, plus what is done: s[t+1] = 2 s[t] - s[t-1] + a[t]; from one state they stand still."""

    noise = 0

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        return observations.flatten(2).float()

    def predict(self, s: Tensor, actions: Tensor) -> Tensor:
        context = s[:, None] if s.dim() == 2 else s
        velocity = context[:, -1] - context[:, -2] if context.shape[1] > 1 else torch.zeros_like(context[:, -1])
        led = actions[:, context.shape[1] - 1 :]
        steps = torch.arange(1, led.shape[1] + 1)[:, None]
        done = led.cumsum(1) if led.shape[-1] else 0
        return context[:, -1:] + steps * velocity[:, None] + done

    def energy(self, s: Tensor, actions: Tensor, s_y: Tensor) -> Tensor:
        return (self.predict(s, actions) - s_y).square().mean((1, 2))


def test_continuations_are_ranked_by_their_energy() -> None:
    """From 0 at velocity 1, actions of 0: 1, 2, 3 is certain, 1, 2, 2 less so, standing still least."""
    s, actions = torch.tensor([[[-1.0], [0.0]]]), torch.zeros(1, 4, 1)
    continuations = torch.tensor([[[0.0, 0, 0], [1, 2, 3], [1, 2, 2]]])[..., None]
    order, energies = rank(Inertia(), s, actions, continuations)
    assert order.tolist() == [[1, 2, 0]]
    torch.testing.assert_close(energies, torch.tensor([[14 / 3, 0, 1 / 3]]))
    with pytest.raises(ValueError, match=r"\[1, C, H, D\]"):
        rank(Inertia(), s, actions, continuations[:, 0])


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e6])
def test_auroc_is_the_share_of_pairs_in_the_right_order(scale: float) -> None:
    """P(F(true) < F(wrong)) + P(F(true) = F(wrong)) / 2, whatever the unit of energies."""
    true, wrong = torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([3.0, 4.0, 6.0])
    assert auroc(scale * true, scale * wrong).value == pytest.approx((3 + 3 + 2.5 + 1) / 12)
    assert auroc(wrong, wrong).value == pytest.approx(0.5)
    assert (
        share_told(torch.tensor([1.0, 5.0, 2.0, 3.0]), torch.tensor([2.0, 6.0, 1.0, 3.00001])).value == 0.625
    )  # the last, a tie but for rounding
    with pytest.raises(ValueError, match="3 of 6 energies are not finite"):  # which would pass for high ones
        auroc(torch.zeros(3), torch.full((3,), torch.nan))


@pytest.mark.parametrize("context", [1, 2, 3])
def test_surprise_is_the_energy_of_the_newest_observation(context: int) -> None:
    """A thing at velocity 1 that jumps by 5 at time 6; what was done, 1 at each step, is told from what was not."""
    states = torch.arange(10.0) + 5 * (torch.arange(10) >= 6)
    actions = torch.full((1, 9, 1), 1.0 if context == 1 else 0.0)
    found = surprise(Inertia(), states[None, :, None], actions, context)
    assert found.shape == (1, 10 - context)
    expected = torch.zeros(10)
    expected[6] = 25.0  # it was expected to go on
    if context > 1:
        expected[7] = 25.0  # and after the jump, to go on as fast as it jumped
    torch.testing.assert_close(found[0], expected[context:])
    with pytest.raises(ValueError, match="before it"):
        surprise(Inertia(), states[None, :, None], actions, 10)


class Flights:
    """Episodes of one number that flies straight on, each from elsewhere at its own speed."""

    def __init__(self, count: int = 12, frames: int = 16) -> None:
        self.number, self.frames = count, frames

    def count(self, split: str) -> int:
        return self.number if split == "test" else 0

    def episodes(self, split: str, numbers: range) -> Iterator[tuple[Any, dict[str, Any]]]:
        chance = np.random.default_rng(0)
        for _ in numbers:
            place = chance.uniform(0, 100, 4)[:, None] + chance.uniform(2, 8, 4)[:, None] * np.arange(self.frames)
            frames = place.T.round().astype(np.uint8).reshape(self.frames, 1, 2, 2)
            yield SimpleNamespace(observations=frames), {}


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.jepa = Inertia()


def test_the_exam_tells_what_followed_from_what_did_not(tmp_path: Path) -> None:
    """Inertia knows all; a still picture knows the place, and can't tell a reversal: all frames are as far away."""
    found = StreetExam(film=Flights(), context=2, horizon=4).run(Stage(), 0, tmp_path, Training())
    assert found["auroc_elsewhere"] > 0.95
    assert found["auroc_reversal"] > 0.95
    assert found["share_reversal"] == found["share_going_back"] == 1
    assert found["auroc_going_back"] > 0.95
    assert found["surprise_at_a_cut"] > 5
    controls = load(tmp_path / "seed_0.json").controls
    assert controls["auroc_reversal"]["pixels"].value == pytest.approx(0.5, abs=0.01)  # but for rounding
    assert controls["auroc_going_back"]["pixels"].value == pytest.approx(0.5, abs=0.01)
    assert controls["auroc_elsewhere"]["pixels"].value > 0.6
    with Image.open(tmp_path / "figures" / "surprise.png") as picture:
        assert picture.width > 400
    with pytest.raises(ValueError, match="two or more"):
        StreetExam(film=Flights(1)).run(Stage(), 0, tmp_path, Training())
    with pytest.raises(ValueError, match="no episodes for val"):
        StreetExam(film=Flights(), split="val").run(Stage(), 0, tmp_path, Training())
