"""Continuations of clips: what did not happen looks as it should, and the exam tells a model that knows from others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from data_pipelines.sources.bouncing import BouncingPictures, Clips
from lightning_jepa.evaluation.completion import CompletionExam, Readout
from lightning_jepa.evaluation.results import load
from lightning_jepa.evaluation.watching import Watcher
from lightning_jepa.perception.conv import ConvEncoder
from lightning_jepa.perception.pixels import PixelEncoder
from lightning_jepa.types import Training
from lightning_jepa.world_model.convolutional import ConvPredictor
from lightning_jepa.world_model.jepa import JEPA
from lightning_jepa.world_model.latent.discrete import DiscreteLatent
from lightning_jepa.world_model.latent_jepa import LatentJEPA

SIDE = 64


def scenes(**more: Any) -> BouncingPictures:
    return BouncingPictures(**{"train": 40, "val": 40, "things": 2, "steps": 24, **more})


@pytest.fixture(scope="module")
def clips() -> Clips:
    return scenes().clips("val", 30, 3, 6)


def test_clips_are_those_of_the_episodes_and_never_the_same_twice(clips: Clips) -> None:
    assert clips.seen.shape == (30, 3, 1, SIDE, SIDE)
    assert {frames.shape for frames in (clips.true, *clips.wrong.values())} == {(30, 6, 1, SIDE, SIDE)}
    again = scenes().clips("val", 30, 3, 6)
    assert np.array_equal(clips.true, again.true)
    assert not np.array_equal(clips.true, scenes().clips("train", 30, 3, 6).true)


def test_what_did_not_happen(clips: Clips) -> None:
    wrong = clips.wrong
    assert np.array_equal(wrong["other_clip"][1:], clips.true[:-1])
    assert np.array_equal(wrong["time_reversal"][:, 0], clips.seen[:, -2])
    assert np.array_equal(wrong["time_reversal"][:, 1], clips.seen[:, -3])
    for name in ("teleport", "identity_swap"):
        assert np.array_equal(wrong[name][:, 0], clips.true[:, 0])
        assert (wrong[name] != clips.true).any((1, 2, 3, 4)).all()
    brightness = clips.true[:, -1].astype(float).sum((1, 2, 3))
    swapped = wrong["identity_swap"][:, -1].astype(float).sum((1, 2, 3))
    assert np.abs(swapped / brightness - 1).max() < 0.35  # the same two digits, which may overlap otherwise


def test_clips_that_can_not_be_made_are_refused() -> None:
    with pytest.raises(ValueError, match="two or more"):
        scenes(things=1).clips("val", 2, 3, 6)
    with pytest.raises(ValueError, match="give two or more, and 27 frames"):
        scenes().clips("val", 2, 3, 13)


def test_pixels_as_a_state_are_the_pixels() -> None:
    encoder = PixelEncoder(1, 16, 4)
    frames = torch.randint(0, 256, (2, 3, 1, 16, 16), dtype=torch.uint8)
    maps = encoder(frames).view(2, 3, 16, 4, 4)
    block = encoder.standardise(frames.flatten(0, 1)).view(2, 3, 16, 16)[..., 4:8, 8:12]
    torch.testing.assert_close(maps[..., 1, 2], block.flatten(2))
    with pytest.raises(ValueError, match="does not divide"):
        PixelEncoder(1, 16, 5)


def test_a_predictor_with_a_history_sees_velocity() -> None:
    """Of two states with the same present and another past it predicts something else; one alone stands for both."""
    torch.manual_seed(0)
    predictor = ConvPredictor((4, 8, 8), 0, hidden=8, history=2)
    nn.init.normal_(predictor.last.weight)
    past, other, now = torch.randn(3, 1, 1, 256)
    nothing = torch.zeros(1, 2, 0)
    ahead = [predictor(torch.cat([before, now], 1), nothing) for before in (past, other, now)]
    assert not torch.allclose(ahead[0], ahead[1])
    torch.testing.assert_close(ahead[2], predictor(now, nothing[:, :1]))


class Stage(nn.Module):
    def __init__(self, jepa: nn.Module) -> None:
        super().__init__()
        self.jepa = jepa


class Straight(JEPA):
    """Pixels fly on as they did between the last two frames: a model that knows, but for the borders."""

    def predict(self, s: Tensor, actions: Tensor) -> Tensor:
        frames = torch.pixel_shuffle(s.unflatten(-1, self.encoder.state_shape), 8)[:, :, 0]
        spectra = torch.fft.rfft2(frames[:, -2:])
        cross = spectra[:, 1] * spectra[:, 0].conj()
        peak = torch.fft.irfft2(cross / cross.abs().clamp_min(1e-6)).flatten(1).argmax(1)
        y, x = peak // SIDE, peak % SIDE
        steps = actions.shape[1] - s.shape[1] + 1
        ahead = [
            torch.stack([frame.roll((int(k * dy), int(k * dx)), (0, 1)) for k in range(1, steps + 1)])
            for frame, dy, dx in zip(frames[:, -1], y, x, strict=True)
        ]
        return torch.pixel_unshuffle(torch.stack(ahead)[:, :, None], 8).flatten(2)


@pytest.mark.parametrize("latent", [False, True])
def test_the_exam_on_a_model_without_training(latent: bool, tmp_path: Path) -> None:
    """Encoded states tell places; what is predicted, that nothing moves, is the copy of the last frame."""
    torch.manual_seed(0)
    encoder = ConvEncoder(1, SIDE, (8, 8, 8), 8)
    if latent:
        predictor = ConvPredictor((8, 8, 8), 3, hidden=8, history=2)
        jepa: nn.Module = LatentJEPA(DiscreteLatent(3, 1024, 0), encoder, predictor)
    else:
        jepa = JEPA(encoder, ConvPredictor((8, 8, 8), 0, hidden=8, history=2))
    exam = CompletionExam(scenes=scenes(), clips=24, horizon=6, samples=2, probed=40, probe_steps=120)
    metrics = exam.run(Stage(jepa), 0, tmp_path, Training())
    found = load(tmp_path / "seed_0.json")
    precision = {name: [row[str(t)].value for t in range(1, 7)] for name, row in found.tables["location"].items()}
    assert precision["predicted"] == pytest.approx(precision["copy_last"], abs=1e-5)
    assert np.mean(precision["encoded"]) > precision["copy_last"][-1] + 0.1
    assert precision["constant_velocity"][0] > 0.8
    assert metrics["auroc_other_clip"] > 0.6
    assert set(precision) >= ({"min_z", "expected"} if latent else set())
    for name in {"min_z", "expected"} & set(precision):
        assert metrics[f"location_ap_8_{name}"] == precision[name][5]
    with Image.open(tmp_path / "figures" / "completion.png") as picture:
        assert picture.width > 300


def test_a_watcher_asks_its_model() -> None:
    """In pieces that fit in memory: the likeliest future, the one that the best z explains, and draws of the prior."""
    torch.manual_seed(0)
    predictor = ConvPredictor((4, 2, 2), 3, hidden=8, history=2)
    nn.init.normal_(predictor.last.weight)
    jepa = LatentJEPA(DiscreteLatent(3, 32, 0), ConvEncoder(1, 8, (4, 4), 4, largest_side=2), predictor).eval()
    watcher = Watcher(jepa)
    frames = torch.randint(0, 256, (70, 5, 1, 8, 8), dtype=torch.uint8)
    seen, s_y = watcher.states(frames.numpy()).split([2, 3], 1)
    nothing = torch.zeros(70, 4, 0)
    explained = jepa.complete(seen, nothing, s_y)
    torch.testing.assert_close(watcher.predicted(seen, 3), jepa.predict(seen, nothing))
    torch.testing.assert_close(watcher.explained(seen, s_y), explained.predicted)
    torch.testing.assert_close(watcher.energy(seen, s_y), explained.energy)
    assert explained.distance[:, 0].mean() < (jepa.predict(seen, nothing) - s_y)[:, 0].square().mean()
    drawn = watcher.drawn(seen, 3, 40)
    assert drawn.shape == (70, 40, 3, 16)
    assert drawn[:, :, 0].std(1).max() > 0.1


def test_the_exam_on_a_model_that_knows_motion(tmp_path: Path) -> None:
    """One digit's flight, found by correlation, is enough to tell going back and other clips from going on."""
    jepa = Straight(PixelEncoder(1, SIDE, 8), ConvPredictor((64, 8, 8), 0, hidden=4, history=2))
    exam = CompletionExam(scenes=scenes(slowest=2.0), clips=24, horizon=3, probed=40, probe_steps=120)
    metrics = exam.run(Stage(jepa), 0, tmp_path, Training())
    ranks = load(tmp_path / "seed_0.json").tables["rankings"]
    assert set(ranks) == {"most_surprising_frame", "mean_over_frames", "imagined_from_what_was_seen"}
    for way in ranks.values():
        assert way["time_reversal"].value > 0.6
        assert way["other_clip"].value > 0.9
    assert metrics["auroc_teleport"] == ranks["most_surprising_frame"]["teleport"].value


def test_places_are_read_from_maps() -> None:
    with pytest.raises(ValueError, match="maps"):
        Readout((16,))
