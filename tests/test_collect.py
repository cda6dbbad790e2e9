"""Collection: shards are a function of (seed, split, number), actions[t] leads from observation t to t + 1, and a
killed collection goes on where it stopped."""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds

from data_pipelines.collect import Collection
from data_pipelines.episodes import EpisodeFolder
from data_pipelines.pack import JOURNAL
from data_pipelines.schema import MANIFEST, Manifest
from data_pipelines.shards import verify
from data_pipelines.worlds.rooms import RoomsWorld, TwoRoomsLayouts
from data_pipelines.worlds.walks import VonMisesWalk


def collection(root: Path, train: int = 10, workers: int = 0, seed: int = 0, **world: int) -> Collection:
    """A few short episodes, 4 in a shard."""
    policy = VonMisesWalk()
    small = RoomsWorld(TwoRoomsLayouts(), **{"episode_steps": 30, **world})
    return Collection(small, policy, str(root), {"train": train, "val": 3}, 4, seed, workers)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("collected")
    collection(root).run()
    return root


def test_the_manifest_counts_what_is_there(collected: Path) -> None:
    manifest = verify(collected / "train")
    assert [shard.episodes for shard in manifest.shards] == [4, 4, 2]
    assert (manifest.episodes, manifest.frames, manifest.transitions, manifest.shortest) == (10, 310, 300, 30)
    assert manifest.observation_shape == (2, 33, 33)
    assert manifest.truth_names == ("agent_x", "agent_y", "wall_x", "door_y")
    assert manifest.configuration["policy"]["door_share"] == 0.35
    assert not list(collected.rglob("*.tmp"))
    assert not list(collected.rglob(JOURNAL))


def test_the_digest_names_the_data(collected: Path, tmp_path: Path) -> None:
    digest = Manifest.load(collected / "train").digest
    assert json.loads((collected / "train" / MANIFEST).read_text())["digest"] == digest
    assert collection(tmp_path / "same").run()["train"].digest == digest
    assert collection(tmp_path / "other", seed=1).run()["train"].digest != digest


def test_stepping_the_world_from_a_truth_gives_the_next_truth_and_picture(collected: Path) -> None:
    world = RoomsWorld(TwoRoomsLayouts())
    for episode in EpisodeFolder(collected / "train"):
        assert len(episode.observations) == len(episode.actions) + 1 == len(episode.truth)
        truth = torch.from_numpy(episode.truth.copy())
        x, y = (int(v) for v in truth[0, 2:])
        layout = torch.full((len(episode.actions),), (x - 20) * 45 + y - 10)
        now = world.reset(layout, truth[:-1, :2])
        assert np.array_equal(now.numpy(), episode.observations[:-1])
        following = world.step(torch.from_numpy(episode.actions.copy()))
        assert torch.equal(world.truth(), truth[1:])
        assert np.array_equal(following.numpy(), episode.observations[1:])


def test_validation_shows_only_held_out_layouts(collected: Path) -> None:
    layouts = TwoRoomsLayouts()
    for split, name in (("train", "train"), ("val", "held_out")):
        allowed = {tuple(row) for row in layouts.factors(layouts.ids(name)).tolist()}
        assert {tuple(episode.truth[0, 2:].tolist()) for episode in EpisodeFolder(collected / split)} <= allowed


def test_the_webdataset_library_reads_the_shards(collected: Path) -> None:
    urls = [str(path) for path in sorted((collected / "train").glob("*.tar"))]
    ours = list(EpisodeFolder(collected / "train"))
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ResourceWarning
        )  # the library leaves closing its files to the garbage collector
        theirs = list(wds.WebDataset(urls, shardshuffle=False).decode())
        gc.collect()
    assert len(theirs) == len(ours)
    for sample, episode in zip(theirs, ours, strict=True):
        assert np.array_equal(sample["observations.npy"], episode.observations)
        assert np.array_equal(sample["actions.npy"], episode.actions)
        assert sample["body.npy"].shape == sample["energies.npy"].shape == (31, 0)
        assert sample["meta.json"]["stream"] == "agency"
        assert set(sample["meta.json"]) == {"world", "policy", "seed", "stream", "layout"}


def test_processes_and_repetition_change_nothing(collected: Path, tmp_path: Path) -> None:
    collection(tmp_path, workers=2).run()
    assert files(tmp_path) == files(collected)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}
    collection(tmp_path).run()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")} == before


KILLED = """
import os, signal, sys
from pathlib import Path
from webdataset.writer import TarWriter
sys.path[:0] = sys.argv[2:]
from test_collect import collection

write, count = TarWriter.write, 0

def write_and_die(self, sample):
    global count
    count += 1
    if count == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, sample)

TarWriter.write = write_and_die
collection(Path(sys.argv[1])).run()
"""


def test_a_killed_collection_leaves_nothing_that_looks_whole_and_goes_on(collected: Path, tmp_path: Path) -> None:
    tests = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, tests, tests.parent], check=False)
    assert done.returncode == -signal.SIGKILL
    left = files(tmp_path)
    assert {name for name in left if name.endswith(".tar")} == {"train/000000.tar"}
    assert left["train/000000.tar"] == files(collected)["train/000000.tar"]
    assert "train/000001.tar.tmp" in left
    with pytest.raises(ValueError, match=r"no manifest.json: the collection was interrupted .* Run the collection"):
        EpisodeFolder(tmp_path / "train")
    with (tmp_path / "train" / JOURNAL).open("a") as journal:
        journal.write('{"name": "0000')  # as if killed while writing the line
    before = (tmp_path / "train/000000.tar").stat().st_mtime_ns
    collection(tmp_path).run()
    assert (tmp_path / "train/000000.tar").stat().st_mtime_ns == before
    assert files(tmp_path) == files(collected)


def test_damaged_shards_are_named_and_made_again(collected: Path, tmp_path: Path) -> None:
    collection(tmp_path).run()
    shards = sorted((tmp_path / "train").glob("*.tar"))
    content = bytearray(shards[0].read_bytes())
    content[600] ^= 1
    shards[0].write_bytes(content)
    shards[1].write_bytes(shards[1].read_bytes()[:-1024])
    shards[2].unlink()
    size = shards[0].stat().st_size
    with pytest.raises(
        ValueError, match=rf"000001.tar has {size - 1024} bytes, expected {size}.*; 000002.tar is missing"
    ):
        verify(tmp_path / "train", thorough=False)
    with pytest.raises(
        ValueError, match=r"000000.tar: s000000-e000000.actions.npy at offset .* Run the command that made it again"
    ):
        verify(tmp_path / "train")
    collection(tmp_path).run()
    assert files(tmp_path) == files(collected)


def test_a_collection_of_another_configuration_is_refused(collected: Path) -> None:
    before = files(collected)
    with pytest.raises(ValueError, match=r"seed is 0 there and 7 here.*another root"):
        collection(collected, train=20, seed=7).run()
    with pytest.raises(ValueError, match=r"holds 10 episodes, more than the 5 asked for.*another root"):
        collection(collected, train=5).run()
    with pytest.raises(ValueError, match=r"world.episode_steps is 30 there and 31 here"):
        collection(collected, episode_steps=31).run()
    assert files(collected) == before


def test_a_collection_grows_to_what_it_would_have_been(collected: Path, tmp_path: Path) -> None:
    collection(tmp_path, train=6).run()  # its second shard is smaller than it will be
    collection(tmp_path, train=10).run()
    assert files(tmp_path) == files(collected)


def test_an_unfinished_collection_of_another_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / JOURNAL).write_text('{"seed":1}\n')
    with pytest.raises(ValueError, match="seed is 1 there and 0 here"):
        collection(tmp_path).run()


def test_foreign_tar_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "000000.tar").write_bytes(b"mine")
    with pytest.raises(ValueError, match="tar files but no manifest"):
        collection(tmp_path).run()
    assert (tmp_path / "train" / "000000.tar").read_bytes() == b"mine"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write episodes to .*file/train .*another root"):
        collection(tmp_path / "file").run()
    monkeypatch.setattr("os.access", lambda *_: False)  # the superuser may write anywhere
    with pytest.raises(ValueError, match="no permission to write"):
        collection(tmp_path / "locked").run()


@pytest.mark.parametrize("episodes", [{}, {"train": 0}, {"test": 3}])
def test_impossible_numbers_of_episodes_are_refused(episodes: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one episode"):
        Collection(RoomsWorld(TwoRoomsLayouts()), VonMisesWalk(), str(tmp_path), episodes)


def test_impossible_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="episodes_per_shard=0"):
        Collection(RoomsWorld(TwoRoomsLayouts()), VonMisesWalk(), str(tmp_path), {"train": 1}, episodes_per_shard=0)


def test_statistics_are_those_of_the_pixels_and_near_the_published_ones(tmp_path: Path) -> None:
    manifest = collection(tmp_path, train=40, resolution=65).run()["train"]
    pixels = np.concatenate([episode.observations for episode in EpisodeFolder(tmp_path / "train")]) / 255.0
    mean, std = manifest.statistics()
    assert mean == pytest.approx(pixels.mean((0, 2, 3)), rel=1e-9)
    assert std == pytest.approx(pixels.std((0, 2, 3)), rel=1e-9)
    # EB-JEPA's world at 65 pixels: agent 0.0026 and 0.037, walls 0.099 and 0.30.
    assert mean == pytest.approx([0.0026, 0.099], rel=0.15)
    assert std == pytest.approx([0.037, 0.30], rel=0.1)


def test_a_manifest_of_another_schema_or_form_is_refused(collected: Path, tmp_path: Path) -> None:
    content = json.loads((collected / "train" / MANIFEST).read_text())
    path = tmp_path / MANIFEST
    for broken, message in (
        ({**content, "schema_version": 99}, "schema version 99, this code reads version 3"),
        ({name: value for name, value in content.items() if name != "shards"}, r"lacks \['shards'\]"),
        ({**content, "shards": []}, "lists no shards"),
        ([], "schema version None"),
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(ValueError, match=message):
            Manifest.load(tmp_path)
    path.write_text('{"schema_ver')
    with pytest.raises(ValueError, match="is not JSON"):
        Manifest.load(tmp_path)
    with pytest.raises(ValueError, match="elsewhere is missing"):
        Manifest.load(tmp_path / "elsewhere")
