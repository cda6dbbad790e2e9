"""NumPy arrays -> shards and back: `python -m data_pipelines.sources.arrays --help`.

An `.npz` file is one episode: `observations` uint8 [T + 1, C, H, W] (or [T + 1, H, W, C]), and what there is of
`actions` [T, A], `body` [T + 1, P], `energies` [T + 1, K] and `truth` [T + 1, N], any numbers. What is not there has
width 0.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from data_pipelines.commands import run, splits
from data_pipelines.episodes import EpisodeFolder
from data_pipelines.schema import ARRAYS, Episode, Manifest, episode_of
from data_pipelines.source import SPLITS, add_options, files_of, pack_given
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
    others = {name: array.astype(ARRAYS[name]) for name, array in found.items() if name != "observations"}
    return episode_of(frames, **others)


class ArrayFiles:
    """Episodes in `.npz` files.

    Args:
        patterns: of the files of each split.
        channels_last: observations are [T + 1, H, W, C].
        body_names: of the columns; by default numbered.
        energy_names: of the columns; by default numbered.
        truth_names: of the columns; by default numbered.

    Raises:
        ValueError: if there are no files for a split, or the first can't be read.
    """

    def __init__(
        self,
        patterns: dict[str, str],
        channels_last: bool = False,
        body_names: Sequence[str] | None = None,
        energy_names: Sequence[str] | None = None,
        truth_names: Sequence[str] | None = None,
    ) -> None:
        self.files = {split: files_of(split, patterns[split]) for split in SPLITS}
        self.channels_last = channels_last
        first = load(self.files["train"][0], channels_last)
        self.body_names = _names("body", body_names, first.body.shape[1])
        self.energy_names = _names("energy", energy_names, first.energies.shape[1])
        self.truth_names = _names("truth", truth_names, first.truth.shape[1])
        files = {split: [path.name for path in paths] for split, paths in self.files.items()}
        self.settings = {"source": "arrays", "files": files}

    def count(self, split: str) -> int:
        """How many episodes a split has."""
        return len(self.files[split])

    def episodes(self, split: str, numbers: range) -> Iterator[tuple[Episode, dict[str, Any]]]:
        """The episodes of these numbers."""
        for path in self.files[split][numbers.start : numbers.stop]:
            yield load(path, self.channels_last), {"file": path.name}


def _names(what: str, given: Sequence[str] | None, width: int) -> tuple[str, ...]:
    return tuple(given) if given else tuple(f"{what}_{column}" for column in range(width))


def into(given: argparse.Namespace) -> dict[str, Manifest]:
    """Pack `.npz` files."""
    patterns = {split: getattr(given, split) for split in SPLITS}
    names = (given.body_names, given.energy_names, given.truth_names)
    return pack_given(ArrayFiles(patterns, given.channels_last, *names), given)


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
    add_options(way)
    way.add_argument("--train", required=True, metavar="PATTERN", help="files to train on, such as 'mine/train/*.npz'")
    way.add_argument("--val", required=True, metavar="PATTERN", help="files to validate on")
    way.add_argument("--channels-last", action="store_true", help="observations are [T + 1, H, W, C]")
    way.add_argument("--body-names", nargs="*", metavar="NAME", help="of the columns")
    way.add_argument("--energy-names", nargs="*", metavar="NAME", help="of the columns")
    way.add_argument("--truth-names", nargs="*", metavar="NAME", help="of the columns")
    way = ways.add_parser("export", help="shards -> one .npz file for each episode", formatter_class=show)
    way.set_defaults(command=back)
    way.add_argument("root", type=Path, help="the data set to read")
    way.add_argument("target", type=Path, help="the folder to write")
    run(lambda given: given.command(given), parser)


if __name__ == "__main__":
    main()
