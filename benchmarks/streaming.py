"""Windows a second: this stream, a flat memory-mapped array and three libraries, side by side.

`python -m benchmarks.streaming` makes its own episodes (100 frames of 64 x 64 x 3 with sensor noise), keeps them in the
page cache, and measures all in one process, in rounds of random order, each between two runs of the flat array: what
counts are ratios to those, as rates are those of one machine at one moment. A window has 16 frames and their actions, a
batch 32 windows.

LitData and MosaicML Streaming are not among the template's packages; docs/data.md says how to add them. Without them
their rows are left out, and no results file is written.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import contenders
from benchmarks.contenders import BATCH, SHAPE, STEPS, Batches, episode
from data_pipelines.pack import pack, shard_sizes
from data_pipelines.plan import Level, ShuffledWindows
from data_pipelines.shards import Packed, write_shard
from lightning_jepa.evaluation.provenance import git_sha, machine, today
from lightning_jepa.evaluation.results import Figure, Results, Rows, save

CEILING, LOADER = "flat arrays", "flat arrays, in workers"
LIBRARIES = {"webdataset": "webdataset", "litdata": "litdata", "mosaicml": "streaming"}  # and their modules
ENCODINGS = ("raw", "zstd", "jpeg")
MANY, FEW, IN_THEM = 1000, 10, 2000  # shards, and the episodes in all of them
_REST = 0.3  # seconds
TARGETS = {
    "ratio_to_ceiling": ("raw, in process, to the flat arrays", 0.85),
    "ratio_to_ceiling_2_workers": ("raw, 2 workers, to the flat arrays in process", 0.7),
    "ratio_to_webdataset": ("raw, in process, to webdataset", 1),
    "ratio_to_litdata": ("raw, in process, to LitData", 1),
    "ratio_to_mosaicml": ("raw, in process, to MosaicML Streaming", 1),
    **{
        f"ratio_at_equal_storage_{encoding}": (f"{encoding}, to the fastest library of each round, all workers", 1)
        for encoding in ENCODINGS
    },
    "ratio_1000_shards_to_10": ("1,000 shards to 10", 0.95),
}


class Turn(NamedTuple):
    """Windows a second in one round: of a way of reading, and of the ceiling just before and after."""

    rate: float
    ceiling: float

    @property
    def share(self) -> float:
        """Of the ceiling."""
        return self.rate / self.ceiling


Turns = dict[str, list[Turn]]  # of each way of reading, one for each round


def _make(folder: Path, each: int, encoding: str, total: int, number: int) -> Packed:
    numbers = range(number * each, min((number + 1) * each, total))
    return write_shard(folder, number, ((episode(one % 100), {}) for one in numbers), encoding)


def shards(root: Path, episodes: int, each: int, encoding: str = "raw") -> Path:
    """A data set of this project with `each` episodes in a shard; what is there already stays."""
    folder = root / "train"
    what = {"episodes": episodes, "each": each}
    pack(folder, partial(_make, folder, each, encoding, episodes), shard_sizes(episodes, each), what, "train", encoding)
    return root


def made(folder: Path, episodes: int, libraries: list[str]) -> dict[str, int]:
    """Make what is missing of the data; the bytes of each store."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / "whole"
    if not whole.exists():
        contenders.Flat.write(folder, episodes)
        for name in libraries:
            if name != "webdataset":  # it reads this project's shards
                for encoding in track(list(ENCODINGS), f"packing for {name}"):
                    getattr(contenders, f"write_{name}")(folder / f"{name}_{encoding}", encoding, episodes)
    for encoding in ENCODINGS:
        shards(folder / f"ours_{encoding}", episodes, 20, encoding)
    whole.touch()
    stores = [path for path in folder.iterdir() if path.is_dir() and path.name != "cache"]
    sizes = {path.name: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in stores}
    flat = sum((folder / f"{name}.bin").stat().st_size for name in ("frames", "actions"))
    return {CEILING: flat, LOADER: flat, **sizes}


def all_of(folder: Path, episodes: int, libraries: list[str], workers: int) -> dict[str, Callable[[], Batches]]:
    """Every way to read with so many workers; the first is the ceiling, always in process."""
    ways: dict[str, Callable[[], Batches]] = {CEILING: partial(contenders.flat, folder, episodes, 0)}
    if workers:
        ways[LOADER] = partial(contenders.flat, folder, episodes, workers)
    for encoding in ENCODINGS:
        name = f"ours_{encoding}"
        ways[name] = partial(contenders.ours, folder / name, folder / "cache", workers)
        for other in libraries:
            root = folder / (name if other == "webdataset" else f"{other}_{encoding}")
            for each in (1, 8):
                samples = partial(getattr(contenders, other), root, encoding)
                ways[f"{other}_{encoding}_{each}"] = partial(contenders.library, samples, encoding, each, workers)
    return ways


def rate(batches: Batches, seconds: float, ahead: int = 0) -> float:
    """Windows a second, from when `ahead` batches that may have been made before are used up."""
    for _ in range(ahead):
        next(batches)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(batches)
        count += 1
    return count * BATCH / (time.perf_counter() - began)


def measure(
    ways: dict[str, Callable[[], Batches]], rounds: int, seconds: float, workers: int, what: str, warm: float = 2.0
) -> Turns:
    """Let every way but the first run once in each round, between two runs of the first."""
    running = {}
    for name, start in track(list(ways.items()), f"warming {what}", auto_refresh=False):
        running[name] = start()
        rate(running[name], warm)  # shards are mapped and compared with their hashes, processes are up
    first, *others = ways
    turns: Turns = {name: [] for name in others}
    order = list(chain.from_iterable(random.sample(others, len(others)) for _ in range(rounds)))
    for name in track(order, f"measuring {what}", auto_refresh=False):
        before = rate(running[first], seconds / 2)
        found = rate(running[name], seconds, ahead=4 * workers)
        time.sleep(_REST)  # its workers make the batches that they make ahead
        turns[name].append(Turn(found, (before + rate(running[first], seconds / 2)) / 2))
    return turns


def figure(values: list[float]) -> Figure:
    """The median of the rounds; its interval is from the least to the largest of them."""
    return Figure(statistics.median(values), min(values), max(values), len(values))


def ratio(over: list[Turn], under: list[Turn]) -> Figure:
    """The median over rounds of one way's share of the ceiling to another's."""
    return figure([a.share / b.share for a, b in zip(over, under, strict=True)])


def plan_milliseconds(windows: int, batches: int = 2000, steps: int = 100) -> dict[str, float]:
    """What it takes to plan a batch of so many windows, in order and anywhere."""
    episodes = windows // steps
    plan = ShuffledWindows(np.full(episodes, steps), np.arange(episodes) // 100, [Level(2, 1)], BATCH, seed=0)
    taken = {}
    for name, numbers in (("in_order", range(batches)), ("anywhere", range(0, 997 * batches, 997))):
        began = time.perf_counter()
        for batch in numbers:
            plan(batch)
        taken[f"plan_ms_{name}"] = 1000 * (time.perf_counter() - began) / batches
    return taken


def ratios(turns: dict[int, Turns], libraries: list[str]) -> Rows:
    """The figures of the exam that compare with the libraries."""
    rows = {}
    for name in libraries:
        rows[f"ratio_to_{name}"] = ratio(turns[0]["ours_raw"], turns[0][f"{name}_raw_8"])
    for encoding in ENCODINGS if libraries else ():
        ways = [f"{name}_{encoding}_{each}" for name in libraries for each in (1, 8)]
        rows[f"ratio_at_equal_storage_{encoding}"] = figure(
            [
                turn.share / max(found[way][number].share for way in ways)
                for found in turns.values()
                for number, turn in enumerate(found[f"ours_{encoding}"])
            ]
        )
    return rows


def rows_of(turns: dict[int, Turns], sizes: dict[str, int], frames: int) -> dict[str, Rows]:
    """For each way of reading, windows a second, the share of the ceiling, and bytes a frame."""
    alone = [turn.ceiling for one in turns[0].values() for turn in one]
    table: dict[str, Rows] = {CEILING: {"windows/s, 0 workers": figure(alone)}}
    for workers, found in sorted(turns.items()):
        for name, one in found.items():
            row = table.setdefault(name, {})
            row[f"windows/s, {workers} workers"] = figure([turn.rate for turn in one])
            row[f"of the ceiling, {workers} workers"] = figure([turn.share for turn in one])
    for name, row in table.items():
        store = name if name in sizes else name.rpartition("_")[0].replace("webdataset", "ours")
        size = sizes[store] / frames
        row["bytes a frame"] = Figure(size, size, size, 1)
    return table


def show(metrics: Rows, table: dict[str, Rows]) -> None:
    """Print what was measured."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    printed = Table("", *columns)
    for name, row in table.items():
        printed.add_row(name, *(f"{row[column].value:,.3g}" if column in row else "" for column in columns))
    console = Console()
    console.print(printed)
    for name, one in metrics.items():
        console.print(f"{name}: {one.value:.3f} ({one.low:.3f} to {one.high:.3f} in {one.n} rounds)")


def main() -> None:
    """Make the data, measure, print, and write results/streaming.json."""
    show_defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=show_defaults)
    parser.add_argument("--episodes", type=int, default=400, help="of 100 frames")
    parser.add_argument("--rounds", type=int, default=6, help="each contender runs once in each")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each run of each contender")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2], help="numbers of worker processes")
    parser.add_argument("--folder", type=Path, help="where the data are made, and left for the next time (10 GB)")
    parser.add_argument("--results", type=Path, default=Path("results/streaming.json"), help="the file to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    libraries = [name for name, module in LIBRARIES.items() if importlib.util.find_spec(module)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        stores = {count: shards(folder / f"shards_{count}", IN_THEM, IN_THEM // count) for count in (FEW, MANY)}
        sizes = made(folder / "encodings", given.episodes, libraries)
        # first what has a target by itself, while few other data are in memory and no other process runs
        pairs: dict[str, dict[str, Callable[[], Batches]]] = {
            "ratio_1000_shards_to_10": {
                str(count): partial(contenders.ours, root, folder / "cache", 0) for count, root in stores.items()
            }
        }
        for name, workers in (("ratio_to_ceiling_2_workers", 2), ("ratio_to_ceiling", 0)):
            ways = all_of(folder / "encodings", given.episodes, libraries, workers)
            pairs[name] = {way: ways[way] for way in (CEILING, "ours_raw")}
        metrics: Rows = {}
        for name, pair in pairs.items():
            (one,) = measure(pair, 3 * given.rounds, given.seconds, 2, name, warm=8).values()
            metrics[name] = figure([turn.share for turn in one])
        turns = {
            workers: measure(
                all_of(folder / "encodings", given.episodes, libraries, workers),
                given.rounds,
                given.seconds,
                workers,
                f"{workers} workers",
            )
            for workers in sorted({0, *given.workers}, reverse=True)  # no process is forked from one that runs threads
        }
    metrics.update(ratios(turns, libraries))
    table = rows_of(turns, sizes, given.episodes * (STEPS + 1))
    show(metrics, table)
    if set(metrics) != set(TARGETS):
        print(f"{given.results} is not written: it needs the libraries {list(LIBRARIES)}")
        return
    results = Results(
        experiment="streaming",
        date=today(),
        git=git_sha(),
        machine=machine(),
        seeds=[0],
        protocol={
            "episodes": f"{given.episodes} of {STEPS + 1} frames {SHAPE}, sensor noise of 3 grey levels, all in memory",
            "windows": f"{contenders.LENGTH} frames at stride 1 with their actions, {BATCH} in a batch",
            "intervals": f"medians of {given.rounds} rounds, {3 * given.rounds} for the ratios to the ceiling and to "
            "10 shards, from the least to the largest of them",
            "shards": f"{IN_THEM} episodes in {FEW} and in {MANY} shards",
            "ceiling": "flat arrays read in a plain loop in process, just before and after each run",
            "libraries": "rows _1 and _8 cut as many windows from each episode read; ratios are to _8",
        },
        metrics=metrics,
        tables={"rates": table},
        cost=plan_milliseconds(10**8),
        targets={
            **{name: {"label": label, "at_least": least} for name, (label, least) in TARGETS.items()},
            "plan_ms_in_order": {"label": "ms to plan the next batch, of 10^8 windows", "at_most": 1},
            "plan_ms_anywhere": {"label": "ms to plan any batch, of 10^8 windows", "at_most": 1},
        },
    )
    save(results, given.results)
    print(f"written: {given.results}")


if __name__ == "__main__":
    main()
