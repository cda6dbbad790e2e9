"""Pictures of energies: what a model holds possible.

Legend: A places of a continuum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from lightning_jepa.evaluation.figures import BLUE, GREEN, GREY, INK, ORANGE, RED, sheet
from lightning_jepa.evaluation.results import Rows

COLOURS = (ORANGE, BLUE, GREEN, RED, INK)


def continuum_figure(path: Path, curves: Mapping[str, Mapping[str, Rows]], modes: Sequence[float]) -> None:
    """Energy over a continuum of futures, the angle by which a step turns aside.

    Args:
        path: of the picture.
        curves: for each model, the angle in degrees (as text) -> the row with its `energy`.
        modes: angles that do occur.
    """
    with sheet(path, (6.5, 3.2)) as (_, (axes,)):
        for mode in modes:
            axes.axvline(mode, color=GREY, linewidth=6, alpha=0.5, zorder=0)
        for colour, (name, curve) in zip(COLOURS, curves.items(), strict=False):
            angles = [float(angle) for angle in curve]
            axes.plot(
                angles, [row["energy"].value for row in curve.values()], color=colour, label=name.replace("_", " ")
            )
        axes.set(
            xlabel="where the step leads: degrees aside (grey: what does occur)",
            ylabel="energy F(x, y)",
            ylim=(0, None),
            xticks=range(-180, 181, 60),
        )
        axes.legend(frameon=False, loc="upper center", ncols=2)


def collapse_figure(path: Path, curves: Mapping[str, Mapping[str, Rows]]) -> None:
    """What collapse is: how many directions the states use over training, and how far they spread, a line for each way.

    The rank does not depend on scale, so that it takes both to see a collapse: to few directions, or to a point.

    Args:
        path: of the picture.
        curves: for each way of training, the step (as text) -> the row with `effective_rank` and `largest_std`.
    """
    told = {"effective_rank": "effective rank of the states", "largest_std": "std of their liveliest number"}
    with sheet(path, (13.0, 4.6), 1, 2) as (_, panels):
        panels[0].axhline(1, color=GREY, linestyle="--", linewidth=1)
        shades = 0.85 * colormaps["turbo"](np.linspace(0.05, 0.95, len(curves)))[:, :3]  # darker: they are read as text
        for axes, (key, label) in zip(panels, told.items(), strict=True):
            ends = {}
            for shade, (name, curve) in zip(shades, curves.items(), strict=True):
                steps, values = [float(step) for step in curve], [row[key].value for row in curve.values()]
                axes.plot(steps, values, color=shade)
                ends[name] = steps[-1], values[-1]
            axes.set(xlabel="training steps", ylabel=label, yscale="log")
            axes.margins(x=0)
            heights = axes.transAxes.inverted().transform(axes.transData.transform(list(ends.values())))[:, 1]
            for shade, (name, end), height in zip(shades, ends.items(), spaced(heights, 0.05), strict=True):
                words, line = (
                    name.replace("_", " "),
                    {"arrowstyle": "-", "color": shade, "linewidth": 0.5, "relpos": (0, 0.5)},
                )
                axes.annotate(
                    words, end, (1.06, height), "data", "axes fraction", line, color=shade, fontsize=7, va="center"
                )


def spaced(heights: NDArray[Any], least: float) -> NDArray[Any]:
    """Heights moved as far up, then down, as it takes to lie `least` apart, below 1, in the same order."""
    order = np.argsort(heights, kind="stable")
    steps = least * np.arange(len(heights))
    apart = np.maximum.accumulate(heights[order] - steps)  # of each, pushed up by those below it
    apart = np.minimum(apart, 1 - steps[-1]) + steps
    moved = np.empty_like(apart)
    moved[order] = apart
    return moved


def risk_figure(path: Path, risks: Mapping[str, Rows]) -> None:
    """How often each planner takes the safe way, over how slippery the bridge is."""
    with sheet(path, (5.5, 3.0)) as (_, (axes,)):
        chances = [float(name.rpartition("=")[2]) for name in risks]
        for colour, name in zip((BLUE, ORANGE, GREY), next(iter(risks.values())), strict=False):
            axes.plot(chances, [row[name].value for row in risks.values()], "o-", color=colour, label=name)
        axes.set(xlabel="chance of a slip", ylabel="share that takes the safe way", ylim=(-0.03, 1.03))
        axes.legend(frameon=False)


def completion_figure(path: Path, seen: NDArray[Any], true: NDArray[Any], nearest: NDArray[Any]) -> None:
    """Clips as film strips, two for each: what was seen and followed, and below it what was predicted.

    Args:
        path: of the picture.
        seen: uint8 [N, h, C, H, W].
        true: uint8 [N, H, C, H, W].
        nearest: the frames whose states are nearest to those predicted, [N, H, C, H, W].
    """
    known, following = seen.shape[1], true.shape[1]
    with sheet(path, (1.0 * (known + following), 2.0 * len(seen)), 2 * len(seen), known + following) as (_, panels):
        for axes in panels:
            axes.axis("off")
        for clip in range(len(seen)):
            first = 2 * clip * (known + following)
            second = first + known + following
            for t in range(known):
                panels[first + t].imshow(seen[clip, t, 0], cmap="gray", vmin=0, vmax=255)
            for t in range(following):
                panels[first + known + t].imshow(true[clip, t, 0], cmap="gray", vmin=0, vmax=255)
                panels[second + known + t].imshow(nearest[clip, t, 0], cmap="gray", vmin=0, vmax=255)
            panels[first].set_title("seen", loc="left", fontsize=8)
            panels[first + known].set_title("what followed", loc="left", fontsize=8)
            panels[second + known].set_title("predicted (nearest state of other clips)", loc="left", fontsize=8)


def neighbours_figure(path: Path, pictures: NDArray[Any]) -> None:
    """Pictures, each with those whose states are nearest, a row each: [N, 1 + neighbours, H, W], the first of all."""
    rows, columns = pictures.shape[:2]
    with sheet(path, (0.8 * columns, 0.8 * rows), rows, columns) as (_, panels):
        for place, axes in enumerate(panels):
            axes.imshow(pictures[place // columns, place % columns], cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set_visible(place % columns == 0)
                spine.set_color(ORANGE)


def surprise_figure(path: Path, film: NDArray[Any], curves: Mapping[str, NDArray[Any]], cut: int) -> None:
    """A film as a strip, and below it how surprising each frame was given those before it.

    Args:
        path: of the picture.
        film: uint8 [T, C, H, W].
        curves: for each variant of the film, what it is called -> surprise of its last frames, [T - h].
        cut: the frame from which on some variants go on elsewhere.
    """
    times = len(film)
    shown = range(0, times, max(1, times // 8))
    with sheet(path, (9.0, 3.6), 2) as (_, (strip, below)):
        strip.imshow(
            np.concatenate([film[t].transpose(1, 2, 0) for t in shown], 1).squeeze(), cmap="gray", vmin=0, vmax=255
        )
        strip.axis("off")
        for colour, (name, curve) in zip((BLUE, ORANGE, GREEN), curves.items(), strict=False):
            below.plot(range(times - len(curve), times), curve, color=colour, label=name)
        below.axvline(cut, color=GREY, linestyle="--", zorder=0)
        below.set(xlabel="frame", ylabel="surprise F", xlim=(0, times), ylim=(0, None))
        below.legend(frameon=False)
