"""inspect, verify and repack: what they print and write, and how they fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from clocks import UNEVEN, clock, write
from PIL import Image

from data_pipelines import inspect, repack, verify
from data_pipelines.episodes import EpisodeFolder
from data_pipelines.store import Cache


def command(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    module.main()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "clocks", UNEVEN)
    return tmp_path / "clocks"


def test_inspect_prints_the_manifests_and_writes_a_sheet(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    command(inspect, monkeypatch, root, "--contact-sheet", tmp_path / "sheet.png")
    told = capsys.readouterr().out
    for word in ("train", "val", "11", "410", "(3, 4, 5)", "raw", "backwards, number", "number, time"):
        assert word in told
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (8 * (13 * 4 + 2) + 2, 12 * (13 * 5 + 2) + 2, 3)
    assert sheet[10, 10].tolist() == [0, 0, 0]  # episode 0 at time 0
    assert sheet[10, -10].tolist() == [0, 40, 40]  # and at its end


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_pictures_of_any_number_of_channels_have_a_sheet(channels: int, tmp_path: Path) -> None:
    write(tmp_path, [[30]], splits=["train"], shape=(channels, 40, 60))
    sheet = inspect.contact_sheet(EpisodeFolder(tmp_path / "train"), columns=3)
    assert sheet.shape == (40 + 4, 3 * 62 + 2, 3)
    last = [[0, 0, 0], [0, 30, 30], None, [0, 30, 30]][channels - 1]
    assert sheet[5, -5].tolist() == last


def test_verify_names_all_damage(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(verify, monkeypatch, root)
    assert "train: 3 shards, 11 episodes, digest " in capsys.readouterr().out
    (root / "val" / "000001.tar").unlink()
    content = bytearray((root / "train" / "000002.tar").read_bytes())
    content[600] ^= 1
    (root / "train" / "000002.tar").write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        command(verify, monkeypatch, root)
    told = str(caught.value)
    assert told.startswith("error: ")
    assert "train/000002.tar: s000002-e000000.actions.npy at offset 512: expected" in told
    assert "val/000001.tar is missing" in told


def test_repack_keeps_every_episode_and_can_go_on(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "packed"
    arguments = (root, target, "--encoding", "zstd", "--episodes-per-shard", 3)
    command(repack, monkeypatch, *arguments)
    for split in ("train", "val"):
        packed = EpisodeFolder(target / split, Cache(str(tmp_path / "cache")))
        assert [shard.episodes for shard in packed.manifest.shards] == [3, 3, 3, 2]
        for number, original in enumerate(EpisodeFolder(root / split)):
            assert packed.meta(number) == {"clock": number}
            for found, expected in zip(packed[number], original, strict=True):
                assert np.array_equal(found, expected)
        assert packed.manifest.statistics()[0].tolist() == EpisodeFolder(root / split).manifest.statistics()[0].tolist()
    before = (target / "train" / "000001.tar").read_bytes()
    (target / "train" / "000001.tar").unlink()
    command(repack, monkeypatch, *arguments)
    assert (target / "train" / "000001.tar").read_bytes() == before
    configuration = json.loads((target / "train" / "manifest.json").read_text())["configuration"]
    assert configuration["repacked"] == {"encoding": "zstd", "episodes_per_shard": 3}


def test_a_split_alone_is_repacked_too(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(repack, monkeypatch, root / "train", tmp_path / "one")
    episodes = EpisodeFolder(tmp_path / "one")
    assert len(episodes) == 11
    assert np.array_equal(episodes[3].truth, clock(3).truth)


def test_a_folder_without_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (inspect, verify):
        with pytest.raises(SystemExit, match=r"error: .* holds no data set: there is no manifest.json"):
            command(module, monkeypatch, tmp_path)
