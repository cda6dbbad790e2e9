"""Bad input: each ends with one message that says how to mend it, exit code 1 and nothing half-written."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TEST_CONF
from hydra.core.global_hydra import GlobalHydra

from data_pipelines.collect import Collection
from data_pipelines.schema import SCHEMA_VERSION
from data_pipelines.worlds.rooms import RoomsWorld, TwoRoomsLayouts
from data_pipelines.worlds.walks import VonMisesWalk
from lightning_jepa import evaluate, pipeline, train

SHORT = ["trainer.max_epochs=1", "data.steps_per_epoch=1", "trainer.log_every_n_steps=1"]
REAL = [f"hydra.searchpath=[file://{TEST_CONF}]", "experiment=two_rooms_tiny", "tracking=none", *SHORT]
MAINS = {"train": train.main, "evaluate": evaluate.main, "pipeline": pipeline.main}

Fails = Callable[..., str]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    world = RoomsWorld(TwoRoomsLayouts(), episode_steps=20)
    Collection(world, VonMisesWalk(), str(root), {"train": 4, "val": 2}, episodes_per_shard=2).run()
    return root


@pytest.fixture
def data(shards: Path, own_root: Path) -> Path:
    """Shards of its own for a test to spoil, where the configuration looks for them."""
    return Path(shutil.copytree(shards, own_root / "data" / "two_rooms_33"))


def command(name: str, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    """The command line, in this process."""
    monkeypatch.setattr(sys, "argv", [name, *REAL, *overrides])
    GlobalHydra.instance().clear()
    MAINS[name]()


def written(root: Path) -> list[str]:
    """Files below the root, but for data and what Hydra keeps of every start: its configuration and a log."""
    files = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return [
        str(path) for path in files if path.parts[0] != "data" and ".hydra" not in path.parts and path.suffix != ".log"
    ]


@pytest.fixture
def fails(own_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that must fail; returns its one message."""
    # Where a tracer runs, as for coverage, Hydra takes it for a debugger and raises.
    monkeypatch.setattr("hydra._internal.utils.is_under_debugger", lambda: False)

    def run(name: str, *overrides: str) -> str:
        before = written(own_root)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            command(name, monkeypatch, *overrides)
        told = capsys.readouterr()
        assert caught.value.code == 1
        assert "Traceback" not in told.out + told.err
        assert written(own_root) == before
        return told.err

    return run


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_sice=3", "Key 'batch_sice' is not in struct"),  # the key does not exist
        ("+data.batch_sice=3", "EpisodeData: got an unexpected keyword argument 'batch_sice'; it takes root, levels"),
        ("data.batch_size=many", "EpisodeData: batch_size='many', expected int"),
        ("seed=three", "Value 'three' of type 'str' could not be converted to Integer"),
        ("trainer.max_epochs=abc", "Trainer: max_epochs='abc', expected Optional[int]"),
        ("world=three_rooms", "Could not find 'world/three_rooms'"),
        ("world.resolution=40", "resolution=40: this world is drawn at 33 or 65 pixels; set one of them"),
        ("evaluation.episodes=1000", "1000 episodes wanted, the task file has 300"),
        ("perception=vector", "VectorEncoder: got an unexpected keyword argument 'channels'; it takes encoder"),
        ("world_model=residual", "Interpolation key 'perception.state_size' not found. The parts do not fit together"),
        ("perception.widths=[8,8,8]", "3 widths for pictures of 33 pixels"),
        ("paths.results=/dev/null/x", "cannot make the output folder /dev/null/x"),
        ("trainer.devices=2", "the pipeline runs in one process"),
    ],
)
def test_a_pipeline_that_cannot_work_does_not_start(override: str, message: str, fails: Fails, own_root: Path) -> None:
    told = fails("pipeline", override)
    assert message in told
    assert not (own_root / "data").exists()


def test_parts_of_other_sizes_are_told_before_anything_is_collected(fails: Fails, own_root: Path) -> None:
    told = fails("pipeline", "perception.channels=5", "world_model.state_shape=[4,9,9]")
    assert "error: perception gives states of 405 numbers, the predictor expects 324: set the sizes of" in told
    assert not (own_root / "data").exists()


def test_episodes_that_are_not_there(fails: Fails, own_root: Path) -> None:
    assert "data/two_rooms_33/train is missing. Run the collection" in fails("train")
    (own_root / "data" / "two_rooms_33" / "train").mkdir(parents=True)
    assert "has no manifest.json: the collection was interrupted or never ran. Run the collection" in fails("train")


def test_episodes_of_another_schema(data: Path, fails: Fails) -> None:
    manifest = data / "train" / "manifest.json"
    version = f'"schema_version": {SCHEMA_VERSION}'
    manifest.write_text(manifest.read_text().replace(version, '"schema_version": 99'))
    assert "has schema version 99, this code reads version" in fails("train")


def test_episodes_of_another_image_size(data: Path, fails: Fails) -> None:
    told = fails("train", "world.resolution=65", f"collection.root={data}")
    assert "have images (2, 33, 33) (channels, height, width), the configuration expects (2, 65, 65). Set the" in told


def test_a_truncated_shard(data: Path, fails: Fails) -> None:
    shard = data / "train" / "000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1024])
    told = fails("train")
    assert f"000001.tar has {len(whole) - 1024} bytes, expected {len(whole)}" in told
    assert "Run the command that made it again" in told


def test_a_shard_whose_content_was_changed(data: Path, fails: Fails) -> None:
    """Of the right size, so found when it is read: in the first steps."""
    shard = data / "train" / "000001.tar"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    assert "000001.tar" in fails("train")


def test_a_checkpoint_that_does_not_fit(
    data: Path, fails: Fails, own_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("train", monkeypatch, f"paths.out={own_root}/run")
    path = own_root / "run" / "checkpoints" / "last.ckpt"
    for start in ("resume", "init_from"):
        told = fails("train", f"{start}={path}", "world_model.hidden=5")
        assert "is of another architecture: jepa.predictor.first.weight has shape [8, 4, 3, 3], expected [5," in told
        assert "Choose the configuration it was trained with" in told
    content = torch.load(path, weights_only=True)
    del content["state_dict"]["jepa.predictor.last.bias"]
    torch.save(content, own_root / "data" / "lacks.ckpt")
    assert "jepa.predictor.last.bias is missing" in fails("evaluate", f"checkpoint={own_root}/data/lacks.ckpt")
    (own_root / "data" / "cut.ckpt").write_bytes(path.read_bytes()[:1000])
    assert "cut.ckpt is not a readable checkpoint" in fails("evaluate", f"checkpoint={own_root}/data/cut.ckpt")
    torch.save(content["state_dict"], own_root / "data" / "bare.ckpt")
    assert "bare.ckpt holds no configuration" in fails("evaluate", f"checkpoint={own_root}/data/bare.ckpt")


def test_a_checkpoint_that_is_not_there(fails: Fails) -> None:
    assert "there is no checkpoint no.ckpt; give the path of a .ckpt file" in fails("evaluate", "checkpoint=no.ckpt")
    assert "no checkpoint to evaluate; give checkpoint=PATH" in fails("evaluate")
    told = fails("pipeline", "stages=[evaluate]")
    assert "give checkpoint=PATH, or resume=auto for the newest run called two_rooms_tiny" in told


@pytest.mark.parametrize("name", MAINS)
def test_a_folder_that_cannot_be_written(name: str, fails: Fails) -> None:
    assert "cannot make the output folder /dev/null/x" in fails(name, "paths.root=/dev/null/x")


def test_data_that_cannot_be_written(fails: Fails) -> None:
    told = fails("pipeline", "stages=[collect]", "paths.data=/dev/null/x")
    assert "cannot write episodes to /dev/null/x" in told


def test_a_tracking_server_that_does_not_answer(data: Path, fails: Fails) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"  # bound, but nobody listens
        told = fails("train", "tracking=mlflow", f"tracking.tracking_uri={address}")
    assert f"the tracking server {address} does not answer" in told
    assert "or track nothing with tracking=none" in told
