"""Pictures of a hierarchy: what each level holds and how far it sees, and paths through mazes.

Legend: N panels, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from lightning_jepa.evaluation.episodes import Episodes
from lightning_jepa.evaluation.figures import BLUE, GREEN, GREY, INK, ORANGE, RED, room, sheet
from lightning_jepa.evaluation.levels import LevelRows

COLOURS = (ORANGE, BLUE, GREEN)


def level_figure(path: Path, levels: Sequence[LevelRows], factors: Sequence[str]) -> None:
    """Prediction error over the steps ahead, where curves cross; and R2 of some factors, read off each level."""
    with sheet(path, (8.5, 3.2), 1, 2) as (_, (ahead, held)):
        for number, (level, colour) in enumerate(zip(levels, COLOURS, strict=False), 1):
            errors = [float(error.mean()) for error in level.errors.values()]
            mark = "" if number == 1 else "o"
            ahead.plot(list(level.errors), errors, color=colour, marker=mark, label=f"level {number}")
            places = [place + 0.25 * (number - 1) for place in range(len(factors))]
            values = [max(0.0, level.r2[factor].value) for factor in factors]
            held.bar(places, values, width=0.22, color=colour, label=f"level {number}")
        ahead.set(xlabel="steps of level 1 ahead", ylabel="position error, px", ylim=(0, None))
        ahead.legend(frameon=False)
        middle = 0.125 * (len(levels) - 1)
        held.set_xticks([place + middle for place in range(len(factors))], [name.replace("_", " ") for name in factors])
        held.set(ylabel="R2 of a linear probe", ylim=(0, 1.05))
        held.axhline(1, color=GREY, linewidth=0.8)


def subgoal_figure(path: Path, walls: Tensor, run: Episodes, subgoals: Tensor) -> None:
    """Paths of the first episodes through their mazes, and where a level above wanted them to be, [N, T, 2]."""
    count = len(subgoals)
    with sheet(path, (2.5 * count, 3.0), 1, count) as (page, panels):
        for row, axes in enumerate(panels):
            room(axes, walls[row])
            axes.plot(*subgoals[row].T, ".", color=RED, markersize=4, linestyle="", label="subgoals", zorder=3)
            axes.plot(*run.positions[row].T, color=BLUE, linewidth=1.6, label="path", zorder=4)
            axes.plot(*run.tasks.starts[row], "o", color=ORANGE, markersize=7, linestyle="", label="start", zorder=5)
            axes.plot(*run.tasks.goals[row], "*", color=GREEN, markersize=12, linestyle="", label="goal", zorder=5)
            axes.set_title("arrived" if run.final[row] else "lost", color=INK if run.final[row] else RED)
        page.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
