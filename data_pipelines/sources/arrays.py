"""NumPy arrays -> shards and back: `python -m data_pipelines.sources.arrays --help`.

An `.npz` file is one episode: `observations` uint8 [T + 1, C, H, W] (or [T + 1, H, W, C]), and what there is of
`actions` [T, A], `body` [T + 1, P], `energies` [T + 1, K] and `truth` [T + 1, N], any numbers. What is not there has
width 0.
"""

from __future__ import annotations

import argparse
import glob
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from rich.progress import track

from data_pipelines.commands import run, splits
from data_pipelines.encodings import SUFFIXES
from data_pipelines.episodes import EpisodeFolder
from data_pipelines.pack import pack, shard_sizes
from data_pipelines.schema import ARRAYS, Episode
from data_pipelines.shards import Packed, write_shard
from data_pipelines.store import Cache


def load(path: Path, channels_last: bool = False) -> Episode:
    """The episode in a file.

    Raises:
        ValueError: if it is no `.npz` file of arrays, or its arrays don't belong together.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as an .npz file of arrays ({error})") from error
    unknown = set(found) - set(ARRAYS)
    if unknown or "observations" not in found or found["observations"].ndim != 4:
        raise ValueError(
            f"{path} holds { {name: list(array.shape) for name, array in found.items()} }; expected observations with "
            f"four axes and some of {[name for name in ARRAYS if name != 'observations']}"
        )
    frames = found["observations"]
    if channels_last:
        frames = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
    for name, dtype in ARRAYS.items():
        rows = len(frames) - (name == "actions")
        found.setdefault(name, np.empty((rows, 0), dtype))
    return Episode(frames, *(found[name].astype(ARRAYS[name]) for name in ARRAYS if name != "observations"))


def _make(folder: Path, files: list[Path], each: int, encoding: str, channels_last: bool, number: int) -> Packed:
    own = files[number * each : (number + 1) * each]
    return write_shard(folder, number, ((load(path, channels_last), {"file": path.name}) for path in own), encoding)


def into(given: argparse.Namespace) -> None:
    """Pack `.npz` files."""
    for split, pattern in (("train", given.train), ("val", given.val)):
        files = sorted(map(Path, glob.glob(pattern, recursive=True)))
        if not files:
            raise ValueError(f"--{split} {pattern}: no such files")
        first, each = load(files[0], given.channels_last), given.episodes_per_shard
        names = {
            what: given_names or [f"{what}_{column}" for column in range(width)]
            for what, given_names, width in (
                ("energy", given.energy_names, first.energies.shape[1]),
                ("truth", given.truth_names, first.truth.shape[1]),
            )
        }
        pack(
            given.root / split,
            partial(_make, given.root / split, files, each, given.encoding, given.channels_last),
            shard_sizes(len(files), each),
            {
                "source": "arrays",
                "files": [path.name for path in files],
                "episodes_per_shard": each,
                "encoding": given.encoding,
            },
            split,
            given.encoding,
            names["energy"],
            names["truth"],
            given.workers,
        )


def back(given: argparse.Namespace) -> None:
    """Write each episode of a data set to an `.npz` file."""
    for folder in splits(given.root):
        target = given.target / folder.relative_to(given.root)
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            episodes = EpisodeFolder(folder, Cache(scratch))
            for number in track(range(len(episodes)), f"exporting {folder}"):
                path = target / f"{number:06d}.npz"
                if not path.exists():  # an interrupted export goes on
                    beside = path.with_suffix(".tmp.npz")
                    np.savez(beside, **episodes[number]._asdict())
                    beside.replace(path)


def main() -> None:
    """The command line."""
    show = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.sources.arrays", description="NumPy arrays into shards, and back."
    )
    ways = parser.add_subparsers(required=True)
    way = ways.add_parser("pack", help="one .npz file for each episode -> shards", formatter_class=show)
    way.set_defaults(command=into)
    way.add_argument("root", type=Path, help="the folder to write; an interrupted run goes on there")
    way.add_argument("--train", required=True, metavar="PATTERN", help="files to train on, such as 'mine/train/*.npz'")
    way.add_argument("--val", required=True, metavar="PATTERN", help="files to validate on")
    way.add_argument("--channels-last", action="store_true", help="observations are [T + 1, H, W, C]")
    way.add_argument("--energy-names", nargs="*", metavar="NAME", help="of the columns")
    way.add_argument("--truth-names", nargs="*", metavar="NAME", help="of the columns")
    way.add_argument("--encoding", choices=list(SUFFIXES), default="raw", help="of the pictures")
    way.add_argument("--episodes-per-shard", type=int, default=100, metavar="N", help="episodes in a tar file")
    way.add_argument("--workers", type=int, default=0, metavar="N", help="processes; 0 for this one")
    way = ways.add_parser("export", help="shards -> one .npz file for each episode", formatter_class=show)
    way.set_defaults(command=back)
    way.add_argument("root", type=Path, help="the data set to read")
    way.add_argument("target", type=Path, help="the folder to write")
    run(lambda given: given.command(given), parser)


if __name__ == "__main__":
    main()
