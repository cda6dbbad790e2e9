"""Labelled pictures in the IDX format of MNIST -> shards: `python -m data_pipelines.sources.idx --help`.

Debian's package dataset-fashion-mnist has 70,000 of them in /usr/share/datasets/fashion-mnist. An episode holds some
pictures in the order of the file, one each step; a picture's class is its truth.
"""

from __future__ import annotations

import argparse
import gzip
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.commands import run
from data_pipelines.schema import Episode, Manifest, episode_of
from data_pipelines.source import add_options, pack_given

BYTES = 0x08  # the format's code for unsigned bytes


def load(path: Path) -> NDArray[np.uint8]:
    """The array in an IDX file, which may be compressed by gzip.

    Raises:
        ValueError: if there is no such file, or it holds no bytes, or not as many as it says.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); Fashion-MNIST comes with Debian's package dataset-fashion-mnist"
        ) from error
    if len(content) < 4 or content[:3] != bytes([0, 0, BYTES]):
        raise ValueError(f"{path} is no IDX file of bytes")
    axes = content[3]
    shape = np.frombuffer(content, ">u4", axes, 4).astype(np.int64).tolist() if len(content) >= 4 + 4 * axes else []
    if not shape or len(content) != 4 + 4 * axes + math.prod(shape):
        raise ValueError(f"{path} is damaged: it says shape {shape} and holds {len(content)} bytes")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


class IdxPictures:
    """Pictures and their classes: the last of the training file are held out for "val", the other file is "test".

    Args:
        folder: with `train-` and `t10k-` files of images and labels, with or without `.gz`.
        pictures_per_episode: what is left over at the end of a file makes a shorter episode.
        source: what the data set is called.
        val_share: of the training file.

    Raises:
        ValueError: if a file is missing, damaged, or pictures and labels are not equally many, or a share is
            impossible.
    """

    body_names: tuple[str, ...] = ()
    energy_names: tuple[str, ...] = ()
    truth_names: tuple[str, ...] = ("class",)
    parts = {"train": "train", "test": "t10k"}

    def __init__(
        self, folder: str, pictures_per_episode: int = 100, source: str = "idx pictures", val_share: float = 0.1
    ) -> None:
        if pictures_per_episode < 1 or not 0 < val_share < 1:
            raise ValueError(
                f"pictures_per_episode={pictures_per_episode}, val_share={val_share}: give at least 1, and a share "
                "between 0 and 1"
            )
        self.each = pictures_per_episode
        self.pictures, self.labels = {}, {}
        for split, part in self.parts.items():
            self.pictures[split] = load(_there(Path(folder), f"{part}-images-idx3-ubyte"))
            self.labels[split] = load(_there(Path(folder), f"{part}-labels-idx1-ubyte"))
            shapes = self.pictures[split].shape, self.labels[split].shape
            if len(shapes[0]) != 3 or shapes[1] != shapes[0][:1]:
                raise ValueError(f"{folder} holds pictures {shapes[0]} and labels {shapes[1]}: one label for each")
        kept = math.floor((1 - val_share) * len(self.labels["train"]))
        for arrays in (self.pictures, self.labels):
            arrays["train"], arrays["val"] = arrays["train"][:kept], arrays["train"][kept:]
        self.settings = {"source": source, "pictures_per_episode": pictures_per_episode, "val_share": val_share}

    def count(self, split: str) -> int:
        """How many episodes a split has."""
        return math.ceil(len(self.labels[split]) / self.each)

    def episodes(self, split: str, numbers: range) -> Iterator[tuple[Episode, dict[str, Any]]]:
        """The episodes of these numbers."""
        for number in numbers:
            some = slice(number * self.each, (number + 1) * self.each)
            frames = np.ascontiguousarray(self.pictures[split][some, None])
            yield episode_of(frames, truth=self.labels[split][some, None].astype(np.float32)), {"first": some.start}


def _there(folder: Path, name: str) -> Path:
    plain = folder / name
    return plain if plain.is_file() else folder / f"{name}.gz"


def packed(given: argparse.Namespace) -> dict[str, Manifest]:
    """Pack them."""
    return pack_given(IdxPictures(given.folder, given.pictures_per_episode, val_share=given.val_share), given)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.sources.idx",
        description="Labelled pictures in the IDX format of MNIST into shards.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_options(parser)
    parser.add_argument("--folder", default="/usr/share/datasets/fashion-mnist", help="with the four files")
    parser.add_argument("--pictures-per-episode", type=int, default=100, metavar="N", help="pictures in an episode")
    parser.add_argument("--val-share", type=float, default=0.1, metavar="SHARE", help="of the training file, its last")
    run(packed, parser)


if __name__ == "__main__":
    main()
