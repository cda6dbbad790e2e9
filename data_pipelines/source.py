"""What a source of episodes is, and how any of them becomes a data set: the same options, the same guarantees.

A simulator of your own, videos, arrays: a `Source` says how many episodes each split has and gives those that are asked
for; `pack_source` writes them to shards, in parallel, resumable.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipelines.encodings import SUFFIXES
from data_pipelines.pack import pack, shard_sizes
from data_pipelines.schema import Episode, Manifest
from data_pipelines.shards import Packed, write_shard

SPLITS = ("train", "val")


class Source(Protocol):
    """Episodes to train on and to validate on.

    Each is a function of its split and number: they may be asked for in any order, by several processes, to which the
    source is pickled.
    """

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the episodes, as JSON; a folder begun with others is refused."""
        ...

    @property
    def body_names(self) -> tuple[str, ...]:
        """Of the columns of the body."""
        ...

    @property
    def energy_names(self) -> tuple[str, ...]:
        """Of the columns of the energies."""
        ...

    @property
    def truth_names(self) -> tuple[str, ...]:
        """Of the columns of the truth."""
        ...

    def count(self, split: str) -> int:
        """How many episodes a split has."""
        ...

    def episodes(self, split: str, numbers: range) -> Iterator[tuple[Episode, dict[str, Any]]]:
        """The episodes of these numbers, each with what else is known of it."""
        ...


def pack_source(
    source: Source, root: Path, encoding: str = "raw", episodes_per_shard: int = 100, workers: int = 0
) -> dict[str, Manifest]:
    """Write both splits of a source to `root/train` and `root/val`; an interrupted run goes on there.

    Args:
        source: of the episodes.
        root: folder of the data set.
        encoding: of the pictures, see `encodings.py`.
        episodes_per_shard: episodes in a tar file.
        workers: processes; 0 for this one.

    Raises:
        ValueError: if a folder can't be written or holds other data, or episodes don't fit together.
    """
    manifests = {}
    for split in SPLITS:
        count, folder = source.count(split), root / split
        numbers = {"episodes": count, "episodes_per_shard": episodes_per_shard, "encoding": encoding}
        manifests[split] = pack(
            folder,
            partial(_make, source, folder, encoding, episodes_per_shard),
            shard_sizes(count, episodes_per_shard),
            {**source.settings, **numbers},
            split,
            encoding,
            source.body_names,
            source.energy_names,
            source.truth_names,
            workers,
        )
    return manifests


class SourceCollection:
    """A source as the first stage of a pipeline: what a `Collection` is to a world.

    Args:
        source, encoding, episodes_per_shard, workers: see `pack_source`.
        root: folder of the data set.
    """

    def __init__(
        self, source: Source, root: str, encoding: str = "raw", episodes_per_shard: int = 100, workers: int = 0
    ) -> None:
        self.source, self.root = source, Path(root)
        self.encoding, self.episodes_per_shard, self.workers = encoding, episodes_per_shard, workers

    def run(self) -> dict[str, Manifest]:
        """Make all shards that are not there yet; one manifest for each split. Raises as `pack_source`."""
        return pack_source(self.source, self.root, self.encoding, self.episodes_per_shard, self.workers)


def _make(source: Source, folder: Path, encoding: str, each: int, number: int) -> Packed:
    split = folder.name
    numbers = range(number * each, min((number + 1) * each, source.count(split)))
    return write_shard(folder, number, source.episodes(split, numbers), encoding)


def chance_of(seed: int, split: str, number: int) -> np.random.Generator:
    """The random numbers of one episode."""
    entropy = hashlib.sha256(f"{seed}/{split}/{number}".encode()).digest()
    return np.random.default_rng(int.from_bytes(entropy[:8]))


def files_of(split: str, pattern: str) -> list[Path]:
    """The files of a split, in order.

    Raises:
        ValueError: if there are none.
    """
    files = sorted(map(Path, glob.glob(pattern, recursive=True)))
    if not files:
        raise ValueError(f"--{split} {pattern}: no such files")
    return files


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that packs a source."""
    parser.add_argument("root", type=Path, help="the folder to write; an interrupted run goes on there")
    parser.add_argument("--encoding", choices=list(SUFFIXES), default="raw", help="of the pictures")
    parser.add_argument("--episodes-per-shard", type=int, default=100, metavar="N", help="episodes in a tar file")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes; 0 for this one")


def pack_given(source: Source, given: argparse.Namespace) -> dict[str, Manifest]:
    """`pack_source` with the options of the command line."""
    return pack_source(source, given.root, given.encoding, given.episodes_per_shard, given.workers)
