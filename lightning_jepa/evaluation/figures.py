"""Pictures of what was measured: the success table, rollouts, plans, energy landscapes.

Legend: N panels, T steps, S candidates, K walls, h w grid nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Sheet
from matplotlib.patches import Rectangle
from torch import Tensor

from lightning_jepa.evaluation.results import Rows

# Okabe and Ito's colours, told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, RED, GREY, INK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#B8BEC6", "#2B2F36"
STYLE = {
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "figure.facecolor": "white",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def sheet(path: Path, size: tuple[float, float], rows: int = 1, columns: int = 1) -> Iterator[tuple[Sheet, list[Axes]]]:
    """A figure in the house's style with rows x columns panels, written to the path at the end."""
    with rc_context(STYLE):
        page = Sheet(figsize=size, layout="constrained")
        axes = np.atleast_1d(np.asarray(page.subplots(rows, columns, squeeze=False))).ravel().tolist()
        yield page, axes
        path.parent.mkdir(parents=True, exist_ok=True)
        page.savefig(path, dpi=130)


def room(axes: Axes, walls: Tensor, hazards: Tensor | None = None) -> None:
    """Draw walls [K, 4] and hazards [M, 4], seen from above, y downwards as in the picture."""
    for x0, y0, x1, y1 in () if hazards is None else hazards.tolist():
        box = Rectangle((x0, y0), x1 - x0, y1 - y0, facecolor="none", edgecolor=RED, hatch="////", zorder=2)
        axes.add_patch(box)
    for x0, y0, x1, y1 in walls.tolist():
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, facecolor=INK, edgecolor="none", zorder=3))
    low, high = walls[:, :2].amin(0).tolist(), walls[:, 2:].amax(0).tolist()
    axes.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]), aspect="equal", xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def success_figure(path: Path, rows: Rows, ours: tuple[str, ...], title: str, target: float | None = None) -> None:
    """Bars of proportions with their 95 % intervals; our own rows stand out, floors and ceilings are grey."""
    with sheet(path, (7.0, 0.9 + 0.38 * len(rows))) as (_, (axes,)):
        for place, (name, figure) in enumerate(rows.items()):
            colour = BLUE if name in ours else GREY
            axes.barh(place, figure.value, color=colour, height=0.68)
            axes.plot([figure.low, figure.high], [place, place], color=INK, linewidth=1.4)
            axes.text(max(figure.high, figure.value) + 0.015, place, f"{figure.value:.2f}", va="center")
        if target is not None:
            axes.axvline(target, color=RED, linewidth=1.2, linestyle="--", zorder=0)
        axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name in rows])
        axes.set(xlim=(0, 1.12), xlabel="share of episodes (bars: 95 % interval)", title=title)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
        axes.invert_yaxis()
        axes.tick_params(length=0)


def rollout_figure(path: Path, walls: Tensor, truth: Tensor, imagined: Tensor) -> None:
    """Imagined paths [N, T, 2], decoded, on the true ones [N, T, 2] in their rooms [N, K, 4]."""
    count = len(walls)
    with sheet(path, (2.3 * count, 2.7), 1, count) as (page, panels):
        for axes, boxes, true, dreamt in zip(panels, walls, truth.cpu(), imagined.cpu(), strict=True):
            room(axes, boxes)
            axes.plot(*true.T, color=GREY, linewidth=5, solid_capstyle="round", label="true path", zorder=4)
            axes.plot(*dreamt.T, color=BLUE, linewidth=1.5, marker=".", markersize=5, label="imagined", zorder=5)
            axes.plot(*true[0], marker="o", color=ORANGE, markersize=7, linestyle="", label="start", zorder=6)
            axes.set_title(f"{float((true[-1] - dreamt[-1]).norm()):.1f} px off after {len(true) - 1} steps")
        page.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)


def plan_figure(
    path: Path, walls: Tensor, starts: Tensor, goals: Tensor, plans: Tensor, candidates: Tensor | None = None
) -> None:
    """Plans [N, T, 2] as the model imagines them, decoded; candidates [N, S, T, 2] of the search stay faint."""
    count = len(walls)
    with sheet(path, (2.3 * count, 2.5), 1, count) as (page, panels):
        for row, axes in enumerate(panels):
            room(axes, walls[row])
            if candidates is not None:
                for path_tried in candidates[row].cpu():
                    axes.plot(*path_tried.T, color=GREY, linewidth=0.7, alpha=0.6, zorder=1)
            axes.plot(*plans[row].cpu().T, color=BLUE, marker=".", markersize=4, label="plan, imagined", zorder=4)
            axes.plot(*starts[row].cpu(), "o", color=ORANGE, markersize=7, label="start", zorder=5)
            axes.plot(*goals[row].cpu(), "*", color=GREEN, markersize=12, label="goal", zorder=5)
        page.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)


def landscape_figure(
    path: Path, walls: Tensor, goals: Tensor, energy: Tensor, way: Tensor, free: Tensor, low: Tensor, pitch: float
) -> None:
    """The energy of every place [N, h, w] above the true way's length [N, h, w]; nodes not free stay white."""
    _floors(path, walls, None, goals, {"energy C(s, goal)": energy, "true way, px": way}, free, low, pitch)


def critic_figure(
    path: Path,
    walls: Tensor,
    hazards: Tensor,
    goals: Tensor,
    judged: Tensor,
    true: Tensor,
    free: Tensor,
    low: Tensor,
    pitch: float,
) -> None:
    """What the critic expects of every place [N, h, w] above the true cost to go; hazards [N, M, 4] are hatched."""
    rows = {"critic TC(s; goal, u)": judged, "true cost to go": true}
    _floors(path, walls, hazards, goals, rows, free, low, pitch)


def _floors(
    path: Path,
    walls: Tensor,
    hazards: Tensor | None,
    goals: Tensor,
    rows: Mapping[str, Tensor],
    free: Tensor,
    low: Tensor,
    pitch: float,
) -> None:
    """One row of panels for each quantity [N, h, w] over the floor."""
    count = len(walls)
    h, w = free.shape[-2:]
    x0, y0 = low.tolist()
    extent = (x0 - pitch / 2, x0 + pitch * (w - 0.5), y0 + pitch * (h - 0.5), y0 - pitch / 2)
    with sheet(path, (2.4 * count + 0.6, 5.0), len(rows), count) as (page, panels):
        for line, (name, values) in enumerate(rows.items()):
            some = panels[line * count : (line + 1) * count]
            limits = (float(values[free].min()), float(values[free].max()))
            for column, axes in enumerate(some):
                shown = np.where(free[column].cpu(), values[column].cpu(), np.nan)
                image = axes.imshow(shown, extent=extent, cmap="viridis_r", vmin=limits[0], vmax=limits[1])
                room(axes, walls[column], None if hazards is None else hazards[column])
                axes.plot(*goals[column].cpu(), "*", color=RED, markeredgecolor="white", markersize=13, zorder=5)
            page.colorbar(image, ax=some, label=name, shrink=0.85)


def paths_figure(
    path: Path, walls: Tensor, hazards: Tensor, starts: Tensor, goals: Tensor, paths: Mapping[float, Tensor]
) -> None:
    """Paths [N, T, 2] for each weight of pain, from light to dark as it rises."""
    count = len(walls)
    shades = np.linspace(0.15, 1, len(paths))
    with sheet(path, (2.5 * count, 3.0), 1, count) as (page, panels):
        for row, axes in enumerate(panels):
            room(axes, walls[row], hazards[row])
            for shade, (pain, taken) in zip(shades, paths.items(), strict=True):
                colour = colormaps["viridis_r"](shade)
                axes.plot(*taken[row].cpu().T, color=colour, linewidth=1.6, label=f"u_pain = {pain:g}", zorder=4)
            axes.plot(*starts[row].cpu(), "o", color=ORANGE, markersize=7, zorder=5)
            axes.plot(*goals[row].cpu(), "*", color=GREEN, markersize=12, zorder=5)
        handles, labels = panels[0].get_legend_handles_labels()
        page.legend(handles, labels, loc="outside lower center", ncols=len(paths), frameon=False)


def dose_figure(path: Path, doses: Sequence[float], rows: Sequence[Rows]) -> None:
    """Pain of an episode and success over the weight of pain."""
    with sheet(path, (7.5, 2.8), 1, 2) as (_, panels):
        for axes, key, label in zip(panels, ("pain", "success"), ("pain of an episode", "success"), strict=True):
            values, lows, highs = ([getattr(row[key], part) for row in rows] for part in ("value", "low", "high"))
            places = range(len(doses))
            axes.vlines(places, lows, highs, color=GREY, linewidth=3)
            axes.plot(places, values, color=BLUE, marker="o")
            axes.set_xticks(places, [f"{dose:g}" for dose in doses])
            axes.set(xlabel="weight of pain, u_pain", ylabel=label, ylim=(0, None))
