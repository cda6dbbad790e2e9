"""The exam of moving things on a model without training, which predicts that nothing moves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_jepa.evaluation.moving import MovingExam, pooled
from lightning_jepa.evaluation.results import load
from lightning_jepa.perception.conv import ConvEncoder
from lightning_jepa.types import Training
from lightning_jepa.world_model.convolutional import ConvPredictor
from lightning_jepa.world_model.jepa import JEPA


class Flying:
    """A picture of stripes, across or down, or a plain one, that moves right by a pixel a step."""

    truth_names = ("x_0", "class_0")

    def count(self, split: str) -> int:
        return 60

    def episodes(self, split: str, numbers: range) -> Iterator[tuple[Any, dict[str, Any]]]:
        chance = np.random.default_rng(len(split))
        for number in numbers:
            frames = np.zeros((11, 1, 17, 17), np.uint8)
            thing = np.full((6, 6), 120)
            thing[:: 2 if number % 3 == 1 else 1, :: 2 if number % 3 == 2 else 1] = 250
            x, y = chance.integers(0, 4), chance.integers(0, 11)
            for t in range(11):
                frames[t, 0, y : y + 6, (x + t) % 12 : (x + t) % 12 + 6] = thing
            truth = np.tile([float(x), float(number % 3)], (11, 1))
            yield SimpleNamespace(observations=frames, truth=truth), {}


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        encoder = ConvEncoder(1, 17, (16,), 16)
        self.jepa = JEPA(encoder, ConvPredictor((16, 9, 9), 0, hidden=8))


def test_a_class_lasts_as_long_as_the_state(tmp_path: Path) -> None:
    """What is predicted is the last state, which tells the class; pixels tell it where they were seen alone."""
    torch.manual_seed(0)
    exam = MovingExam(film=Flying(), classes=3, updates=200)
    found = exam.run(Stage(), 0, tmp_path, Training())
    controls = load(tmp_path / "seed_0.json").controls["class_after_prediction"]
    assert found["class_after_prediction"] > 0.85
    assert controls["encoded"].value > 0.9
    assert set(load(tmp_path / "seed_0.json").tables["classes"]["predicted"]) == {str(t) for t in range(1, 9)}


def test_only_maps_are_pooled() -> None:
    torch.testing.assert_close(
        pooled(torch.tensor([[[1.0, 3.0, 5.0, 5.0]]]), (2, 1, 2)), torch.tensor([[[2.0, 5, 3, 5]]])
    )
    with pytest.raises(ValueError, match=r"\[16\]: this exam reads maps"):
        pooled(torch.zeros(1, 1, 16), (16,))
