"""Windows a second of this stream, of a flat memory-mapped array and of the webdataset library, side by side.

`python benchmarks/streaming.py` makes its own episodes (64 x 64 x 3 pictures with noise), warms the page cache and lets
all contenders run in one process, in rounds of random order. What counts are the medians of the ratios within a round:
the rates themselves are those of one machine on one day. Each window has 16 frames at stride 1 with its actions; a
batch has 32.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from data_pipelines.datamodule import EpisodeData
from data_pipelines.pack import pack
from data_pipelines.schema import Episode
from data_pipelines.shards import Packed, write_shard
from data_pipelines.store import Store

STEPS, SHAPE, LENGTH, BATCH = 99, (3, 64, 64), 16, 32

Contender = Callable[[], Iterator[object]]  # batches without end


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
        clean = np.where(disc, 220, texture)
        frames[t] = np.clip(clean + chance.normal(0, 3, SHAPE), 0, 255)
    actions = np.tile(velocity, (STEPS, 1)).astype(np.float32)
    nothing = np.empty((STEPS + 1, 0), np.float32)
    return Episode(frames, actions, nothing, nothing, nothing)


def make(folder: Path, each: int, encoding: str, number: int) -> Packed:
    """Write one shard."""
    return write_shard(folder, number, ((episode(number * each + i), {}) for i in range(each)), encoding)


class Flat(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The ceiling: item n is a batch gathered from flat arrays, as fast as memory gives it."""

    def __init__(self, folder: Path, episodes: int) -> None:
        rows = episodes * (STEPS + 1)
        self.frames = np.asarray(np.memmap(folder / "frames.bin", np.uint8, "r", shape=(rows, *SHAPE)))
        self.actions = np.asarray(np.memmap(folder / "actions.bin", np.float32, "r", shape=(rows, 2)))
        self.episodes = episodes

    @staticmethod
    def write(folder: Path, episodes: int) -> None:
        """The same episodes, one after the other."""
        rows = episodes * (STEPS + 1)
        frames = np.memmap(folder / "frames.bin", np.uint8, "w+", shape=(rows, *SHAPE))
        actions = np.memmap(folder / "actions.bin", np.float32, "w+", shape=(rows, 2))
        for number in range(episodes):
            one, first = episode(number), number * (STEPS + 1)
            frames[first : first + STEPS + 1], actions[first : first + STEPS] = one.observations, one.actions

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        chance = np.random.default_rng(batch)
        starts = chance.integers(self.episodes, size=BATCH) * (STEPS + 1) + chance.integers(
            STEPS + 2 - LENGTH, size=BATCH
        )
        frames = torch.empty((BATCH, LENGTH, *SHAPE), dtype=torch.uint8)
        actions = torch.empty((BATCH, LENGTH - 1, 2))
        into, led = frames.numpy(), actions.numpy()
        for row, start in enumerate(starts.tolist()):
            into[row] = self.frames[start : start + LENGTH]
            led[row] = self.actions[start : start + LENGTH - 1]
        return frames, actions


def flat(folder: Path, episodes: int, workers: int) -> Iterator[object]:
    """Batches of the flat arrays."""
    loader = DataLoader(Flat(folder, episodes), batch_size=None, sampler=iter(range(1 << 40)), num_workers=workers)
    return iter(loader)


def ours(root: Path, cache: Path, workers: int) -> Iterator[object]:
    """Batches of this stream."""
    levels = [{"length": LENGTH, "stride": 1}]
    data = EpisodeData(str(root), levels, Store(str(cache)), BATCH, steps_per_epoch=1 << 20, workers=workers)
    return iter(data.train_dataloader())


def library(root: Path, windows: int, workers: int) -> Iterator[object]:
    """Batches of the webdataset library: shards in random order, some windows cut from each episode that it reads."""
    import webdataset as wds

    def cut(samples: Iterator[dict[str, Any]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for sample in samples:
            frames, actions = sample["observations.npy"], sample["actions.npy"]
            for _ in range(windows):
                start = random.randrange(STEPS + 2 - LENGTH)
                yield (
                    torch.from_numpy(frames[start : start + LENGTH].copy()),
                    torch.from_numpy(actions[start : start + LENGTH - 1].copy()),
                )

    urls = sorted(map(str, (root / "train").glob("*.tar")))
    data = wds.WebDataset(urls, resampled=True, shardshuffle=False, empty_check=False).decode()
    stream = data.compose(cut).shuffle(100).batched(BATCH, collation_fn=_stacked)
    return iter(wds.WebLoader(stream, batch_size=None, num_workers=workers))


def _stacked(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, ...]:
    return tuple(map(torch.stack, zip(*samples, strict=True)))


def rate(batches: Iterator[object], seconds: float) -> float:
    """Windows a second."""
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(batches)
        count += 1
    return count * BATCH / (time.perf_counter() - began)


def main() -> None:
    """Make the data, measure, print a table."""
    show = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show)
    parser.add_argument("--episodes", type=int, default=320, help="of 100 frames")
    parser.add_argument("--rounds", type=int, default=6, help="each contender runs once in each")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each run")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2], help="numbers of worker processes")
    parser.add_argument("--folder", type=Path, default=None, help="where the data are made, and left for the next time")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "frames.bin").is_file():
            Flat.write(folder, given.episodes)
        each = 20
        for encoding in ("raw", "zstd", "jpeg"):
            split = folder / encoding / "train"
            counts = [each] * (given.episodes // each)
            pack(split, partial(make, split, each, encoding), counts, {"episodes": given.episodes}, "train", encoding)
        contenders: dict[str, Contender] = {}
        for workers in given.workers:
            contenders[f"flat memory-mapped array, {workers} workers"] = partial(flat, folder, given.episodes, workers)
            for encoding in ("raw", "zstd", "jpeg"):
                start = partial(ours, folder / encoding, folder / "cache", workers)
                contenders[f"this stream, {encoding}, {workers} workers"] = start
            for windows in (1, 8):
                name = f"webdataset, {windows} windows of each episode read, {workers} workers"
                contenders[name] = partial(library, folder / "raw", windows, workers)
        running = {name: start() for name, start in contenders.items()}
        for batches in running.values():
            rate(batches, 2 * given.seconds)  # warm: shards mapped, episodes compared with their hashes
        rates: dict[str, list[float]] = {name: [] for name in running}
        order = list(running)
        for name in track(list(chain.from_iterable(random.sample(order, len(order)) for _ in range(given.rounds)))):
            rates[name].append(rate(running[name], given.seconds))
    ceiling = rates["flat memory-mapped array, 0 workers"]
    print(f"{'':60s} windows/s  of the ceiling")
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(found, ceiling, strict=True))
        print(f"{name:60s} {statistics.median(found):9.0f}  {ratio:8.3f}")


if __name__ == "__main__":
    main()
