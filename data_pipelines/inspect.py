"""Show what a data set holds: `python -m data_pipelines.inspect data/two_rooms_33 --contact-sheet sheet.png`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from data_pipelines.commands import run, splits
from data_pipelines.episodes import EpisodeFolder
from data_pipelines.schema import Manifest
from data_pipelines.store import Cache


def table(manifests: dict[str, Manifest]) -> Table:
    """The manifests side by side."""
    shown = Table("", *manifests)

    def line(name: str, *values: object) -> None:
        shown.add_row(name, *map(str, values))

    each = list(manifests.values())
    line("episodes", *(f"{m.episodes:,}" for m in each))
    line("frames", *(f"{m.frames:,}" for m in each))
    line("shortest episode, actions", *(f"{m.shortest:,}" for m in each))
    line("shards", *(f"{len(m.shards):,}" for m in each))
    line("size", *(f"{sum(shard.bytes for shard in m.shards) / 1e6:,.1f} MB" for m in each))
    line("bytes for each frame", *(f"{sum(shard.bytes for shard in m.shards) / m.frames:,.0f}" for m in each))
    line("pictures (C, H, W)", *(m.observation_shape for m in each))
    line("encoding", *(m.encoding for m in each))
    line("action", *(m.action_size for m in each))
    line("body", *(", ".join(m.body_names) or "none" for m in each))
    line("energies", *(", ".join(m.energy_names) or "none" for m in each))
    line("truth", *(", ".join(m.truth_names) or "none" for m in each))
    line("plans", *(f"{m.plan_size} numbers" if m.plan_size else "none" for m in each))
    line("goal", *("a picture" if m.has_goal else "none" for m in each))
    line("weights of the cost", *(m.weights_size or "none" for m in each))
    statistics = [m.statistics() for m in each]
    line("mean of each channel", *(np.array2string(mean, precision=4) for mean, _ in statistics))
    line("std of each channel", *(np.array2string(std, precision=4) for _, std in statistics))
    line("digest", *(m.digest[:12] for m in each))
    return shown


def contact_sheet(episodes: EpisodeFolder, rows: int = 8, columns: int = 12, least_side: int = 64) -> NDArray[np.uint8]:
    """Frames of some episodes, evenly spread over the data set and over time: uint8 [height, width, 3]."""
    channels, height, width = episodes.manifest.observation_shape
    zoom, gap = max(1, round(least_side / max(height, width))), 2
    chosen = np.unique(np.linspace(0, len(episodes) - 1, rows).round().astype(int))
    cell = (height * zoom + gap, width * zoom + gap)
    sheet = np.full((len(chosen) * cell[0] + gap, columns * cell[1] + gap, 3), 128, np.uint8)
    for row, number in enumerate(chosen.tolist()):
        frames = episodes[number].observations
        for column, time in enumerate(np.linspace(0, len(frames) - 1, columns).round().astype(int).tolist()):
            # One channel is grey; of two, the second is cyan; of more, the first three are red, green and blue.
            rgb = frames[time][{1: [0, 0, 0], 2: [0, 1, 1]}.get(channels, [0, 1, 2])]
            picture = rgb.transpose(1, 2, 0).repeat(zoom, 0).repeat(zoom, 1)
            top, left = row * cell[0] + gap, column * cell[1] + gap
            sheet[top : top + height * zoom, left : left + width * zoom] = picture
    return sheet


def inspect(given: argparse.Namespace) -> None:
    """Print the table and, if asked, write the sheet of the first split."""
    folders = splits(given.root)
    Console().print(table({folder.name: Manifest.load(folder) for folder in folders}))
    if given.contact_sheet is not None:
        from PIL import Image

        with tempfile.TemporaryDirectory() as scratch:
            sheet = contact_sheet(EpisodeFolder(folders[0], Cache(scratch)))
        Image.fromarray(sheet).save(given.contact_sheet)
        print(f"{given.contact_sheet}: {folders[0].name}, one episode in a row, time from left to right")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m data_pipelines.inspect", description=__doc__)
    parser.add_argument("root", type=Path, help="a data set, or the folder of one of its splits")
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE.png", help="write pictures of some episodes")
    run(inspect, parser)


if __name__ == "__main__":
    main()
