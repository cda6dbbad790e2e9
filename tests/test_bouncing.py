"""Bouncing digits: x[t + 1] = x[t] + v[t] but for bounces, inside the picture, drawn where the truth says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.episodes import EpisodeFolder
from data_pipelines.sources import bouncing
from data_pipelines.sources.bouncing import BouncingPictures, Digits


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.sampled_from(["mirror", "random"]), st.integers(0, 99), st.floats(0.5, 6))
def test_digits_fly_straight_between_bounces_and_stay_inside(
    count: int, bounce: str, seed: int, fastest: float
) -> None:
    source = BouncingPictures(9, 1, 0, count, 32, 1, 30, slowest=0.5, fastest=fastest, bounce=bounce, seed=seed)
    for episode, _ in source.episodes("train", range(3)):
        truth = episode.truth.reshape(31, count, 5)
        corner, velocity = truth[..., :2] - 3.5, truth[..., 2:4]
        assert corner.min() >= -1e-4
        assert corner.max() <= 24 + 1e-4
        speed = np.linalg.norm(velocity, axis=-1)
        assert np.allclose(speed, speed[:1], rtol=1e-4)
        ahead = corner[:-1] + velocity[:-1]
        free = ((ahead >= 0) & (ahead <= 24)).all(-1)
        assert np.allclose(corner[1:][free], ahead[free], atol=1e-3)
        assert np.allclose(velocity[1:][free], velocity[:-1][free])
        assert ((velocity[1:] > 0) | (ahead >= 0)).all()  # away from the border that was touched
        assert ((velocity[1:] < 0) | (ahead <= 24)).all()
        if bounce == "mirror":
            assert np.allclose(np.abs(velocity), np.abs(velocity[:1]), rtol=1e-4)


def test_pictures_show_the_digits_where_the_truth_says() -> None:
    """Their centre of light moves as the truth does, between pixels too, and no light is lost."""
    source = BouncingPictures(steps=20)
    pictures, classes = Digits().pictures["train"], Digits().labels["train"]
    pixel = np.arange(64)
    for episode, _ in source.episodes("train", range(3, 7)):
        frames, truth = episode.observations[:, 0].astype(float), episode.truth
        light = frames.sum((1, 2))
        centre = np.stack([(frames.sum(1) * pixel).sum(1), (frames.sum(2) * pixel).sum(1)], 1) / light[:, None]
        off = centre - truth[:, :2]
        assert np.abs(off - off[0]).max() < 0.05
        shown = [picture for picture in pictures[classes == truth[0, 4]] if abs(4.0 * picture.sum() - light[0]) < 40]
        assert any(np.allclose(off[0], 2 * _off(picture), atol=0.1) for picture in shown)


def _off(picture: np.ndarray) -> np.ndarray:
    """Of a picture's centre of light from its middle, (x, y)."""
    light = picture.astype(float)
    pixel = np.arange(len(light)) - (len(light) - 1) / 2
    return np.array([(light.sum(0) * pixel).sum(), (light.sum(1) * pixel).sum()]) / light.sum()


def test_random_bounces_have_many_futures_and_mirrored_ones_a_single_one() -> None:
    """Angles before and after a bounce at the left border: a function of each other, or not."""
    spread = {}
    for bounce in ("mirror", "random"):
        source = BouncingPictures(side=32, zoom=1, steps=60, slowest=2, fastest=2, bounce=bounce)
        velocity = np.concatenate([episode.truth[:, 2:4] for episode, _ in source.episodes("train", range(100))])
        before, after = velocity[:-1], velocity[1:]
        bounced = (before[:, 0] < 0) & (after[:, 0] > 0) & (np.abs(before[:, 1] - after[:, 1]) < 3.9)
        spread[bounce] = np.median(np.abs(before[bounced, 1] - after[bounced, 1]))
    assert spread["mirror"] == 0  # but in corners
    assert spread["random"] > 0.5


def test_each_split_shows_other_pictures_of_the_same_digits() -> None:
    train, val, test = ({p.tobytes() for p in Digits().pictures[split]} for split in ("train", "val", "test"))
    assert not train & val
    assert not (train | val) & test
    assert all(set(labels.tolist()) == set(range(10)) for labels in Digits().labels.values())


class Squares:
    """Two classes of pictures of 5 x 5 pixels: dark and bright."""

    pictures = dict.fromkeys(
        ("train", "val"), np.stack([np.full((5, 5), 90, np.uint8), np.full((5, 5), 200, np.uint8)])
    )
    labels = dict.fromkeys(("train", "val"), np.array([3, 7]))
    settings = {"source": "squares"}


def test_pictures_of_any_size_fly_with_their_class() -> None:
    source = BouncingPictures(side=20, steps=6, things=1, zoom=2, fastest=2.0, pictures=Squares())
    assert source.settings["pictures"] == {"source": "squares"}
    for episode, _ in source.episodes("train", range(5)):
        shown = {3.0: 90, 7.0: 200}[episode.truth[0, 4]]
        assert [frame.max() for frame in episode.observations] == [shown] * 7
        light = episode.observations.sum((1, 2, 3), dtype=float)
        assert np.allclose(light, 100 * shown, rtol=0.01)


def test_the_command_packs_both_splits_and_repeats_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(root: Path, *more: str) -> dict[str, bytes]:
        arguments = ["--train", "5", "--val", "2", "--steps", "4", "--things", "2", "--episodes-per-shard", "2"]
        monkeypatch.setattr(sys, "argv", ["bouncing", str(root), *arguments, *more])
        bouncing.main()
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    first = run(tmp_path / "one")
    assert first == run(tmp_path / "two", "--workers", "2") == run(tmp_path / "one")
    folder = EpisodeFolder(tmp_path / "one" / "train")
    assert [shard.episodes for shard in folder.manifest.shards] == [2, 2, 1]
    assert folder[0].observations.shape == (5, 1, 64, 64)
    assert folder[0].actions.shape == (4, 0)
    assert folder.manifest.truth_names[5:] == ("x_1", "y_1", "vx_1", "vy_1", "class_1")
    with pytest.raises(SystemExit, match="error: episodes=5, episodes_per_shard=0: give at least 1 of each"):
        run(tmp_path / "none", "--episodes-per-shard", "0")
    with pytest.raises(SystemExit, match="error: .*holds other data: seed is 0 there and 1 here"):
        run(tmp_path / "one", "--seed", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"bounce": "none"}, "bounce='none'"), ({"things": 0}, "things=0"), ({"side": 16}, "16 - 16 pixels")],
)
def test_what_cannot_fly_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BouncingPictures(**arguments)
