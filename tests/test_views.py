"""Pairs of pictures for a joint embedding, and labelled pictures as shards."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data_pipelines.datamodule import EpisodeData
from data_pipelines.source import SourceCollection
from data_pipelines.sources.idx import IdxPictures, load
from lightning_jepa.perception.views import MaskedView, TwoViews, Views
from lightning_jepa.types import Window


def window(pictures: Tensor) -> Window:
    """Single pictures [B, C, H, W] as a batch."""
    b = len(pictures)
    none, rows = torch.zeros(b, 1, 0), torch.zeros(b, 0, 1, 0)
    truth = torch.arange(b, dtype=torch.float32)[:, None, None]
    nothing = torch.zeros(b, 0)
    times, mask = torch.zeros(b, 1, dtype=torch.long), torch.ones(b, dtype=torch.bool)
    return Window(pictures[:, None], rows, none, none, truth, rows, nothing, nothing, times, mask)


def pictures(count: int = 4, side: int = 28) -> Tensor:
    return torch.randint(0, 256, (count, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("views", [TwoViews(), MaskedView()])
def test_a_window_of_one_picture_becomes_a_pair(views: Views) -> None:
    made = views(window(pictures()))
    assert made.observations.shape == (4, 2, 1, 28, 28)
    assert made.observations.dtype == torch.uint8
    assert made.actions.shape == (4, 1, 1, 0)
    assert made.truth[:, :, 0].tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]
    with pytest.raises(ValueError, match=r"windows of 2 frames.*length: 1"):
        views(made)


def test_steps_make_new_views_and_a_checkpoint_goes_on_with_the_next() -> None:
    views, batch = TwoViews(), window(pictures())
    first, second = (views(batch).observations for _ in range(2))
    assert not torch.equal(first, second)
    resumed = TwoViews()
    resumed.load_state_dict(views.state_dict())
    assert torch.equal(resumed(batch).observations, views(batch).observations)
    views.eval()
    assert torch.equal(views(batch).observations, views(batch).observations)


def test_each_process_has_views_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else row i of every process would be moved and turned alike."""
    batch, made = window(pictures()), []
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        made.append(TwoViews()(batch).observations)
    monkeypatch.undo()
    assert torch.equal(TwoViews()(batch).observations, made[0])
    assert not torch.equal(made[0], made[1])


def test_views_that_change_nothing_are_the_picture() -> None:
    still = TwoViews(shift=0, scale=1, turn=0, mirror=0, light=0, erase=0)
    made = still(window(pictures())).observations
    assert (made.int() - pictures()[:, None].int()).abs().max() <= 1
    turned = TwoViews(shift=0, scale=1, turn=0, mirror=1, light=0, erase=0)(window(pictures())).observations
    assert (turned.int() - pictures()[:, None].flip(-1).int()).abs().max() <= 1


def test_what_moves_and_what_is_erased() -> None:
    spot = torch.zeros(64, 1, 28, 28, dtype=torch.uint8)
    spot[:, :, 12:16, 12:16] = 255
    moved = TwoViews(shift=0.2, scale=1, turn=0, mirror=0, light=0, erase=0)(window(spot)).observations[:, 0, 0].float()
    middle = (moved.sum(1) @ torch.arange(28.0)) / moved.sum((1, 2))
    assert 13.5 - 0.2 * 28 - 0.1 < middle.min() < middle.max() < 13.5 + 0.2 * 28 + 0.1
    assert middle.std() > 2
    white = torch.full((64, 1, 28, 28), 255, dtype=torch.uint8)
    erased = TwoViews(shift=0, scale=1, turn=0, mirror=0, light=0, erase=0.5)(window(white)).observations
    share = (erased == 0).float().mean((1, 2, 3, 4))
    assert share.max() <= 0.5**2 + 0.05
    assert share.mean() > 0.02


@settings(deadline=None, max_examples=20)
@given(block=st.integers(1, 9), hidden=st.floats(0.1, 0.9))
def test_a_part_and_the_whole(block: int, hidden: float) -> None:
    """x is y with whole blocks set to zero."""
    bright = pictures(16).clamp_min(1)
    made = MaskedView(block, hidden)(window(bright)).observations
    assert torch.equal(made[:, 1], bright)
    seen = made[:, 0] > 0
    assert torch.equal(made[:, 0][seen], bright[seen])
    for row in range(0, 28, block):
        part = seen[:, 0, row : row + block, :block].flatten(1)
        assert ((part.all(1)) | (~part.any(1))).all()
    if block == 1:
        assert seen.float().mean() == pytest.approx(1 - hidden, abs=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TwoViews(scale=0.5), "scale of at least 1"),
        (lambda: TwoViews(erase=2.0), "between 0 and 1"),
        (lambda: MaskedView(block=0), "at least 1"),
        (lambda: MaskedView(hidden=1.0), "between 0 and 1"),
    ],
)
def test_what_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def idx(path: Path, array: np.ndarray, compressed: bool = False) -> None:
    content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if compressed else content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for part, count in (("train", 25), ("t10k", 10)):
        idx(tmp_path / f"{part}-images-idx3-ubyte.gz", generator.integers(0, 256, (count, 12, 12), np.uint8), True)
        idx(tmp_path / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return tmp_path


def test_labelled_pictures_become_shards_and_come_back(folder: Path) -> None:
    """The last of the training file are to look for a recipe with; the test file is not even packed."""
    source = IdxPictures(str(folder), pictures_per_episode=10, val_share=0.2)
    manifests = SourceCollection(source, str(folder / "shards"), episodes_per_shard=2).run()
    assert (manifests["train"].episodes, manifests["val"].episodes) == (2, 1)
    data = EpisodeData(
        root=str(folder / "shards"),
        levels=[{"length": 1, "stride": 1}],
        batch_size=5,
        steps_per_epoch=None,
        val_windows_per_episode=None,
        observation_shape=[1, 12, 12],
    )
    data.setup("fit")
    seen = [(int(c), bytes(p.numpy())) for b in data.val_dataloader() for c, p in zip(*_kept(b[0]), strict=True)]
    labels, held_out = load(folder / "train-labels-idx1-ubyte"), load(folder / "train-images-idx3-ubyte.gz")
    assert sorted(seen) == sorted((int(c), p.tobytes()) for c, p in zip(labels[20:], held_out[20:], strict=True))
    assert np.array_equal(source.pictures["test"], load(folder / "t10k-images-idx3-ubyte.gz"))


def _kept(one: Window) -> tuple[Tensor, Tensor]:
    return one.truth[one.mask, 0, 0], one.observations[one.mask, 0, 0]


def test_damaged_files_are_told(folder: Path) -> None:
    with pytest.raises(ValueError, match="val_share=1"):
        IdxPictures(str(folder), val_share=1)
    with pytest.raises(ValueError, match="dataset-fashion-mnist"):
        IdxPictures(str(folder / "nowhere"))
    (folder / "train-labels-idx1-ubyte").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(ValueError, match="no IDX file"):
        IdxPictures(str(folder))
    idx(folder / "train-labels-idx1-ubyte", np.zeros(7, np.uint8))
    with pytest.raises(ValueError, match="one label for each"):
        IdxPictures(str(folder))
    content = (folder / "t10k-labels-idx1-ubyte").read_bytes()
    (folder / "t10k-labels-idx1-ubyte").write_bytes(content[:-1])
    with pytest.raises(ValueError, match="damaged"):
        load(folder / "t10k-labels-idx1-ubyte")
