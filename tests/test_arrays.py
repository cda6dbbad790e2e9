"""NumPy arrays into shards and back: every number comes back."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from clocks import clock

from data_pipelines.episodes import EpisodeFolder
from data_pipelines.sources import arrays


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["arrays", *map(str, arguments)])
    arrays.main()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for split, count in (("train", 5), ("val", 2)):
        (tmp_path / "files" / split).mkdir(parents=True)
        for number in range(count):
            np.savez(tmp_path / "files" / split / f"{number}.npz", **clock(number, 20 + number)._asdict())
    return tmp_path / "files"


def test_there_and_back(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    way = ["--train", files / "train/*.npz", "--val", files / "val/*.npz", "--episodes-per-shard", 2]
    command(monkeypatch, "pack", tmp_path / "shards", *way, "--truth-names", "number", "time")
    folder = EpisodeFolder(tmp_path / "shards" / "train")
    assert folder.manifest.truth_names == ("number", "time")
    assert folder.manifest.energy_names == ("energy_0", "energy_1")
    assert folder.meta(4) == {"file": "4.npz"}
    for _ in range(2):
        command(monkeypatch, "export", tmp_path / "shards", tmp_path / "back")
        assert len(list((tmp_path / "back").rglob("*.npz"))) == 7
    for path in (tmp_path / "back" / "train").iterdir():
        for found, expected in zip(arrays.load(path), clock(int(path.stem), 20 + int(path.stem)), strict=True):
            assert np.array_equal(found, expected)
            assert found.dtype == expected.dtype


def test_channels_may_come_last_and_all_but_pictures_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.random.default_rng(0).integers(256, size=(7, 4, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", observations=frames)
    command(
        monkeypatch, "pack", tmp_path / "shards", "--train", tmp_path / "a.npz", "--val", tmp_path / "a.npz",
        "--channels-last",
    )  # fmt: skip
    episode = EpisodeFolder(tmp_path / "shards" / "val")[0]
    assert np.array_equal(episode.observations, frames.transpose(0, 3, 1, 2))
    assert episode.actions.shape == (6, 0)
    assert episode.truth.shape == (7, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"frames": np.zeros((3, 1, 2, 2), np.uint8)}, r"holds {'frames': \[3, 1, 2, 2\]}; expected observations"),
        ({"observations": np.zeros((3, 2, 2), np.uint8)}, "four axes"),
        ({"observations": np.zeros((3, 1, 2, 2), np.float32)}, "observations float32 .* needs uint8"),
        ({"observations": np.zeros((3, 1, 2, 2), np.uint8), "actions": np.zeros((3, 1))}, "3 actions.* 4 rows"),
        ({"observations": np.array([{}])}, "cannot be read as an .npz file of arrays"),
    ],
)
def test_files_that_do_not_fit_are_named(
    content: dict[str, np.ndarray], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", **content)
    pattern = tmp_path / "*.npz"
    with pytest.raises(SystemExit, match=rf"error: .*{message}"):
        command(monkeypatch, "pack", tmp_path / "shards", "--train", pattern, "--val", pattern)
    assert not list((tmp_path / "shards").rglob("*.tar"))
    with pytest.raises(SystemExit, match=r"--train .*/b\*.npz: no such files"):
        command(monkeypatch, "pack", tmp_path / "shards", "--train", tmp_path / "b*.npz", "--val", pattern)
