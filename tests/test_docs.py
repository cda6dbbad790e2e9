"""What the documentation says is there, and its example files run as they stand."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from data_pipelines.collect import record
from data_pipelines.datamodule import EpisodeData
from data_pipelines.schema import Manifest
from data_pipelines.sources import arrays
from lightning_jepa import build
from lightning_jepa.paths import CONF

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FILE = re.compile(r"^```(?:python|yaml)\n# (?P<name>[\w/]+\.(?:py|yaml))\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)(?P<path>[^)#]+)|src=\"(?P<source>[^\"]+)")
NAMED = re.compile(r"`((?:lightning_jepa|data_pipelines|conf|tests|docs|notebooks|benchmarks)/[\w./]+)`")
MAKE = re.compile(r"`make ([a-z]+)|^make ([a-z]+)", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    found = [match["path"] or match["source"] for match in LINK.finditer(page.read_text(encoding="utf-8"))]
    assert [path for path in found if not (page.parent / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_of_make_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {a or b for a, b in MAKE.findall(page.read_text(encoding="utf-8"))} <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    """Names in code font with a folder of this repository in front."""
    named = NAMED.findall(page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files that the guides show."""
    folder = tmp_path / "example"
    for page in ("your-own-world.md", "your-own-data.md"):
        for match in FILE.finditer((ROOT / "docs" / page).read_text(encoding="utf-8")):
            path = folder / match["name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(match["text"], encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(build, "TRUSTED", (*build.TRUSTED, "my_worlds."))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_worlds"]:
        del sys.modules[name]


def test_the_world_of_the_guide_is_collected_and_read(example: Path) -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        fewer = ["collection.episodes.train=100", f"paths.out={example}/run"]
        cfg = compose("config", [f"hydra.searchpath=[file://{example}/my_conf]", "experiment=lamp", *fewer])
    manifests = build.build(cfg.collection).run()
    assert {split: manifest.episodes for split, manifest in manifests.items()} == {"train": 100, "val": 40}
    data = build.build(cfg.data)
    data.setup("fit")
    dense, sparse = next(iter(data.train_dataloader()))
    assert dense.observations.shape == (64, 17, 2, 33, 33)
    assert sparse.actions.shape == (64, 8, 6, 2)
    build.build(cfg.stage)

    world, policy = build.build(cfg.world), build.build(cfg.collection.policy)
    episode = record(world, policy, world.layouts.ids("held_out"), torch.Generator().manual_seed(0))
    places = episode.truth[..., :2]
    brightest = episode.observations[:, :, 0].reshape(*places.shape[:2], -1).argmax(-1)
    assert np.abs(np.stack([brightest % 33, brightest // 33], -1) - places).max() <= 1
    assert np.linalg.norm(np.diff(places, axis=1), axis=-1).max() <= world.action_bound + 1e-4


def test_a_source_of_one_s_own_is_packed_and_read(example: Path) -> None:
    runpy.run_path("my_data.py", run_name="__main__")
    assert Manifest.load(example / "data" / "noise" / "train").episodes == 20
    levels = [{"length": 17, "stride": 1}, {"length": 9, "stride": 6}]
    data = EpisodeData("data/noise", levels, batch_size=4, observation_shape=(2, 33, 33))
    data.setup("fit")
    assert next(iter(data.train_dataloader()))[1].observations.shape == (4, 9, 2, 33, 33)
    assert next(iter(data.val_dataloader()))[0].truth.shape == (4, 17, 0)


def test_the_arrays_of_the_guide_are_packed(example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runpy.run_path("my_arrays.py")
    way = "pack data/mine --train mine/train/*.npz --val mine/val/*.npz --truth-names place"
    monkeypatch.setattr(sys, "argv", ["arrays", *way.split()])
    arrays.main()
    manifest = Manifest.load(example / "data" / "mine" / "train")
    assert (manifest.episodes, manifest.action_size, manifest.truth_names) == (20, 1, ("place",))
