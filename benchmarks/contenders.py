"""Ways to get batches of windows out of the same episodes: flat arrays, this stream, and three libraries.

Every function here gives batches without end: (pictures uint8 [B, T, C, H, W], actions float32 [B, T - 1, A]), or a
`Window` that has both. The libraries give whole episodes; from each that is read, one or several windows are cut, which
go through a buffer of `_MIXED` windows: more windows of an episode are cheaper and mix less.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, IterableDataset

from data_pipelines.datamodule import EpisodeData
from data_pipelines.encodings import decode, encode, unpack
from data_pipelines.schema import Episode, episode_of
from data_pipelines.store import Store

STEPS, SHAPE, LENGTH, BATCH = 99, (3, 64, 64), 16, 32
_MIXED = 100
_FOR_EVER = 1 << 40

Batches = Iterator[object]
Sample = tuple[Any, NDArray[np.float32]]  # pictures as they are stored, actions
Samples = Callable[[], Iterator[Sample]]  # without end; called in each worker process


@cache
def episode(number: int) -> Episode:
    """A disc that moves over a texture, with sensor noise of 3 grey levels."""
    chance = np.random.default_rng(number)
    y, x = np.mgrid[:64, :64]
    texture = 60 + 40 * np.sin(x / chance.uniform(3, 9)) + 40 * np.cos(y / chance.uniform(3, 9))
    frames = np.empty((STEPS + 1, *SHAPE), np.uint8)
    place, velocity = chance.uniform(16, 48, 2), chance.uniform(-1, 1, 2)
    for t in range(STEPS + 1):
        place = (place + velocity) % 64
        disc = (x - place[0]) ** 2 + (y - place[1]) ** 2 < 64
        frames[t] = np.clip(np.where(disc, 220, texture) + chance.normal(0, 3, SHAPE), 0, 255)
    actions = np.tile(velocity, (STEPS, 1)).astype(np.float32)
    return episode_of(frames, actions=actions)


class Flat(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The ceiling: item n is a batch gathered from two flat memory-mapped arrays, as fast as memory gives it."""

    def __init__(self, folder: Path, episodes: int) -> None:
        rows = episodes * (STEPS + 1)
        self.frames = np.asarray(np.memmap(folder / "frames.bin", np.uint8, "r", shape=(rows, *SHAPE)))
        self.actions = np.asarray(np.memmap(folder / "actions.bin", np.float32, "r", shape=(rows, 2)))
        self.episodes = episodes

    @staticmethod
    def write(folder: Path, episodes: int) -> None:
        """The episodes, one after the other."""
        rows = episodes * (STEPS + 1)
        frames = np.memmap(folder / "frames.bin", np.uint8, "w+", shape=(rows, *SHAPE))
        actions = np.memmap(folder / "actions.bin", np.float32, "w+", shape=(rows, 2))
        for number in range(episodes):
            one, first = episode(number), number * (STEPS + 1)
            frames[first : first + STEPS + 1], actions[first : first + STEPS] = one.observations, one.actions

    def __getitem__(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        chance = np.random.default_rng(batch)
        starts = chance.integers(self.episodes, size=BATCH) * (STEPS + 1)
        starts += chance.integers(STEPS + 2 - LENGTH, size=BATCH)
        frames = torch.empty((BATCH, LENGTH, *SHAPE), dtype=torch.uint8)
        actions = torch.empty((BATCH, LENGTH - 1, 2))
        into, led = frames.numpy(), actions.numpy()
        for row, start in enumerate(starts.tolist()):
            into[row] = self.frames[start : start + LENGTH]
            led[row] = self.actions[start : start + LENGTH - 1]
        return frames, actions


def flat(folder: Path, episodes: int, workers: int) -> Batches:
    """Batches of the flat arrays; in this process without a loader, which costs more than a plain loop."""
    data = Flat(folder, episodes)
    if workers == 0:
        return map(data.__getitem__, range(_FOR_EVER))
    return iter(DataLoader(data, batch_size=None, sampler=range(_FOR_EVER), num_workers=workers))


def ours(root: Path, cache_folder: Path, workers: int) -> Batches:
    """Batches of this stream."""
    levels = [{"length": LENGTH, "stride": 1}]
    store = Store(str(cache_folder))
    return iter(EpisodeData(str(root), levels, store, BATCH, 1 << 20, workers=workers).train_dataloader())


def stored(encoding: str, number: int) -> Any:
    """The pictures of an episode as the libraries store them: an array, or the bytes that this stream stores."""
    frames = episode(number).observations
    return frames if encoding == "raw" else encode(encoding, frames)


class Windows(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Batches of windows cut from the episodes that a library gives.

    Args:
        samples: makes an iterator over stored episodes without end.
        encoding: of their pictures.
        each: windows cut from each.
    """

    def __init__(self, samples: Samples, encoding: str, each: int) -> None:
        self.samples, self.encoding, self.each = samples, encoding, each

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        mixed: list[tuple[torch.Tensor, torch.Tensor]] = []
        batch: list[tuple[torch.Tensor, torch.Tensor]] = []
        for stored_pictures, actions in self.samples():
            pictures = self._unpacked(stored_pictures)
            for _ in range(self.each):
                start = random.randrange(STEPS + 2 - LENGTH)
                led = torch.from_numpy(actions[start : start + LENGTH - 1].copy())
                mixed.append((self._cut(pictures, start), led))
            while len(mixed) > _MIXED:
                place = random.randrange(len(mixed))
                mixed[place], mixed[-1] = mixed[-1], mixed[place]
                batch.append(mixed.pop())
                if len(batch) == BATCH:
                    frames, led = zip(*batch, strict=True)
                    yield torch.stack(frames), torch.stack(led)
                    batch.clear()

    def _unpacked(self, pictures: Any) -> Any:
        if self.encoding == "zstd":
            array = np.frombuffer(unpack(np.frombuffer(pictures, np.uint8)), np.uint8)
            return array[-(STEPS + 1) * int(np.prod(SHAPE)) :].reshape(STEPS + 1, *SHAPE)
        return pictures if self.encoding == "raw" else np.frombuffer(pictures, np.uint8)

    def _cut(self, pictures: Any, start: int) -> torch.Tensor:
        if self.encoding != "jpeg":
            return torch.from_numpy(np.array(pictures[start : start + LENGTH]))
        out = np.empty((LENGTH, *SHAPE), np.uint8)
        decode("jpeg", pictures, range(start, start + LENGTH), out)
        return torch.from_numpy(out)


def library(samples: Callable[[], Samples], encoding: str, each: int, workers: int) -> Batches:
    """Batches of one of the libraries."""
    return iter(DataLoader(Windows(samples(), encoding, each), batch_size=None, num_workers=workers))


def webdataset(root: Path, encoding: str) -> Samples:
    """Episodes from this project's own shards, in the way of the library's tutorial."""
    import webdataset as wds

    name = {"raw": "observations.npy", "zstd": "observations.npy.zst", "jpeg": "observations.jpgs"}[encoding]
    urls = sorted(map(str, (root / "train").glob("*.tar")))
    data = wds.WebDataset(urls, resampled=True, shardshuffle=False, empty_check=False)
    decoded = data.decode(only=["observations.npy", "actions.npy"])
    return lambda: ((sample[name], sample["actions.npy"]) for sample in decoded)


def write_litdata(folder: Path, encoding: str, episodes: int) -> None:
    """Episodes as LitData's chunks of 64 MB."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for number in range(episodes):
        writer[number] = {"observations": stored(encoding, number), "actions": episode(number).actions}
    writer.done()
    writer.merge()


def litdata(folder: Path, encoding: str) -> Samples:
    """Episodes from LitData, shuffled."""
    from litdata import StreamingDataset

    return _again_and_again(StreamingDataset(str(folder), shuffle=True))


def write_mosaicml(folder: Path, encoding: str, episodes: int) -> None:
    """Episodes as MosaicML's shards of 64 MB."""
    columns = {"observations": "ndarray" if encoding == "raw" else "bytes", "actions": "ndarray"}
    with _mosaicml().MDSWriter(out=str(folder), columns=columns, size_limit="64mb") as writer:
        for number in range(episodes):
            writer.write({"observations": stored(encoding, number), "actions": episode(number).actions})


def mosaicml(folder: Path, encoding: str) -> Samples:
    """Episodes from MosaicML Streaming, shuffled."""
    return _again_and_again(_mosaicml().StreamingDataset(local=str(folder), shuffle=True, batch_size=1))


def _again_and_again(data: Iterable[dict[str, Any]]) -> Samples:
    """Walks without end; the data set itself is made once, in the main process, as its workers have to meet in it."""

    def walk() -> Iterator[Sample]:
        while True:
            for sample in data:
                yield sample["observations"], sample["actions"]

    return walk


@cache
def _mosaicml() -> ModuleType:
    """The library; it asks for two names of torchvision, which there may be no build of, and doesn't use them here."""
    wanted = {"torchvision.datasets": "VisionDataset", "torchvision.transforms.functional": "to_tensor"}
    missing = importlib.util.find_spec("torchvision") is None
    names = ("torchvision", "torchvision.transforms", *wanted) if missing else ()
    for name in names:
        sys.modules[name] = ModuleType(name)
        if name in wanted:
            setattr(sys.modules[name], wanted[name], object)
    try:
        return importlib.import_module("streaming")
    finally:
        for name in names:
            del sys.modules[name]
