"""Check every byte of a data set: `python -m data_pipelines.verify data/two_rooms_33`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.progress import track

from data_pipelines.commands import run, splits
from data_pipelines.schema import Manifest
from data_pipelines.shards import MEND, damage, split_index


def verify(given: argparse.Namespace) -> None:
    """Compare all shards of all splits with what their manifests know.

    Raises:
        ValueError: naming every damaged shard, and where it is damaged.
    """
    problems = []
    for folder in splits(given.root):
        manifest = Manifest.load(folder)
        parts = list(zip(manifest.shards, split_index(folder, manifest), strict=True))
        for shard, rows in track(parts, f"verifying {folder}"):
            problem = damage(folder, shard, rows, manifest.encoding, thorough=True)
            if problem is not None:
                problems.append(f"{folder}/{problem}")
        print(f"{folder}: {len(parts)} shards, {manifest.episodes} episodes, digest {manifest.digest[:12]}")
    if problems:
        raise ValueError("\n".join([*problems, MEND]))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m data_pipelines.verify", description=__doc__)
    parser.add_argument("root", type=Path, help="a data set, or the folder of one of its splits")
    run(verify, parser)


if __name__ == "__main__":
    main()
