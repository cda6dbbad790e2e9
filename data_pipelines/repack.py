"""Write a data set again with another encoding or other shards: `python -m data_pipelines.repack OLD NEW --help`."""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

from data_pipelines.commands import run, splits
from data_pipelines.encodings import SUFFIXES, check
from data_pipelines.episodes import EpisodeFolder
from data_pipelines.pack import pack, shard_sizes
from data_pipelines.shards import Packed, write_shard
from data_pipelines.store import Cache


def repack(given: argparse.Namespace) -> None:
    """Pack every split of one data set into another folder."""
    for folder in splits(given.root):
        with tempfile.TemporaryDirectory() as scratch:
            episodes = EpisodeFolder(folder, Cache(scratch))
            manifest = episodes.manifest
            encoding, each = given.encoding or manifest.encoding, given.episodes_per_shard
            check(encoding, manifest.observation_shape[0])
            target = given.target / folder.relative_to(given.root)
            pack(
                target,
                partial(_make, episodes, target, encoding, each),
                shard_sizes(len(episodes), each),
                {**manifest.configuration, "repacked": {"encoding": encoding, "episodes_per_shard": each}},
                manifest.split,
                encoding,
                manifest.body_names,
                manifest.energy_names,
                manifest.truth_names,
                given.workers,
            )


def _make(episodes: EpisodeFolder, target: Path, encoding: str, each: int, number: int) -> Packed:
    numbers = range(number * each, min((number + 1) * each, len(episodes)))
    return write_shard(target, number, ((episodes[one], episodes.meta(one)) for one in numbers), encoding)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m data_pipelines.repack", description=__doc__)
    parser.add_argument("root", type=Path, help="the data set to read")
    parser.add_argument("target", type=Path, help="the folder to write; an interrupted run goes on there")
    parser.add_argument("--encoding", choices=list(SUFFIXES), help="of the pictures (default: as it is)")
    parser.add_argument("--episodes-per-shard", type=int, default=100, metavar="N", help="(default 100)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default 0: this one)")
    run(repack, parser)


if __name__ == "__main__":
    main()
