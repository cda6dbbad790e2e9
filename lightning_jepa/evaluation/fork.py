"""The exam `fork` of E3: a world whose next state has three modes, and what a model makes of them.

Legend: N transitions, M modes, S samples, D state, A angles of a continuum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator, Tensor
from torchmetrics.functional.classification import binary_calibration_error

from lightning_jepa.evaluation.energy_figures import continuum_figure
from lightning_jepa.evaluation.ranking import auroc
from lightning_jepa.evaluation.report import Report, Trained
from lightning_jepa.evaluation.results import Rows, mean
from lightning_jepa.evaluation.states import encode_at
from lightning_jepa.evaluation.world import ExamWorld, draw_layouts, draw_positions
from lightning_jepa.protocols import EnergyModel
from lightning_jepa.types import Training

NEAR = 0.25  # a sample belongs to a mode if it is nearer than this to it, in units of the distance between modes


class ForkingWorld(ExamWorld, Protocol):
    """A world in which a step turns aside by chance."""

    probabilities: tuple[float, float, float]  # of turning left, going ahead, turning right
    angle: float  # between two modes, degrees


class Examinee(Trained, Protocol):
    """A trained stage."""

    jepa: EnergyModel


class ForkExam:
    """Measures energies and samples of the futures of one step, for one seed.

    Distances and energies are told in units of the mean squared distance between the modes' states, so that models of
    different scale compare.

    Args:
        world: one whose steps have modes.
        transitions: N.
        samples: S, futures drawn for each.
        angles: A + 1, of the continuum whose energies are told.
        first_draw: of transitions, that of seed 0: a recipe that was looked for on one draw is measured on another.
        targets, name, note: see `TwoRoomsExam`.
    """

    def __init__(
        self,
        *,
        world: ForkingWorld,
        transitions: int = 500,
        samples: int = 256,
        angles: int = 73,
        first_draw: int = 0,
        targets: Mapping[str, Mapping[str, Any]] | None = None,
        name: str = "fork",
        note: str | None = None,
    ) -> None:
        self.world = world
        self.transitions, self.samples, self.angles, self.first_draw = transitions, samples, angles, first_draw
        protocol = {
            "transitions": transitions,
            "samples": samples,
            "layouts": "held out",
            "unit": "of distances and energies: the mean squared distance between the states of the modes",
            "recall": f"a sample within {NEAR} of a mode",
            "intervals": "95 %: Wilson for shares, Student's t for means",
        }
        self.report = Report(name, protocol, targets, note)

    @torch.no_grad()
    def run(self, stage: Examinee, seed: int, out: Path, training: Training) -> dict[str, float]:
        """Write `out/seed_<seed>.json` and `out/figures`; returns the metrics' values."""
        stage.to(self.world.device)
        stage.eval()
        jepa, generator = stage.jepa, Generator().manual_seed(self.first_draw + seed)
        places = self._places(generator)
        ids, here, action = places
        s = encode_at(self.world, jepa, ids, here)
        states = self._seen(jepa, places, torch.tensor(self._angles()))  # of the modes [N, M, D]
        unit = torch.stack([(states[:, i] - states[:, j]).square().mean(-1) for i, j in ((0, 1), (0, 2), (1, 2))])
        unit = unit.mean(0).clamp_min(1e-12)
        chances = torch.tensor(self.world.probabilities)
        happened = torch.multinomial(chances, len(ids), replacement=True, generator=generator)
        rows = torch.arange(len(ids))

        def energy(s_y: Tensor) -> Tensor:
            first = slice(len(s_y))
            return jepa.energy(s[first], action[first, None], s_y[:, None]).float() / unit[first]

        true = energy(states[rows, happened])
        wrong = {
            "average": energy((states * chances.to(states)[:, None]).sum(1)),
            "another": energy(states[rows, happened].roll(1, 0)),
            "between": energy(self._seen(jepa, places, torch.tensor([self.world.angle / 2]))[:, 0]),
            "back": energy(self._seen(jepa, places, torch.tensor([180.0]))[:, 0]),
        }
        uniform = _even(self.samples, jepa.noise, seed)[:, None]
        drawn = jepa.scenarios(s, action[:, None, None], uniform)[:, 0, :, 0]  # [N, S, D]
        error = (drawn[:, :, None] - states[:, None]).square().mean(-1) / unit[:, None, None]  # [N, S, M]
        nearest = error.argmin(-1)
        belongs = error.amin(-1) < NEAR
        share = torch.stack([((nearest == mode) & belongs).float().mean(1) for mode in range(3)], 1)  # [N, M]
        often = torch.multinomial(chances.expand(len(ids), -1), 20, replacement=True, generator=generator)
        actual = torch.nn.functional.one_hot(often, 3)  # [N, 20, M]
        told = share[:, None].expand_as(actual)
        metrics: Rows = {
            "mode_recall": mean((share > 0).float().mean(1).tolist()),
            "auroc_true_against_average": auroc(true, wrong["average"]),
            "auroc_true_against_another": auroc(true, wrong["another"]),
            "auroc_true_against_between": auroc(true, wrong["between"]),
            "auroc_true_against_back": auroc(true, wrong["back"]),
            "calibration_error": mean([float(binary_calibration_error(told.flatten(), actual.flatten(), n_bins=10))]),
            "sample_precision": mean(belongs.float().mean(1).tolist()),
            "energy_true": mean(true.tolist()),
            "expected_error": mean(error[rows, :, happened].mean(1).tolist()),
            "best_of_samples": mean(error[rows, :, happened].amin(1).tolist()),
            "spread_of_modes": mean(unit.tolist()),
        }
        for mode, which in enumerate(("left", "ahead", "right")):
            metrics[f"recall_{which}"] = mean((share[:, mode] > 0).float().tolist())
            metrics[f"share_{which}"] = mean(share[:, mode].tolist())
        degrees = torch.linspace(-180, 180, self.angles)
        some = (ids[:50], here[:50], action[:50])
        curve = {
            f"{angle:g}": {"energy": mean(energy(s_y).tolist())}
            for angle, s_y in zip(degrees.tolist(), self._seen(jepa, some, degrees).unbind(1), strict=True)
        }
        results = self.report.write(out, seed, metrics, training.cost, tables={"continuum": curve})
        continuum_figure(out / "figures" / "continuum.png", {self.report.experiment: curve}, self._angles())
        return results.values

    def _angles(self) -> list[float]:
        return [-self.world.angle, 0.0, self.world.angle]

    def _places(self, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Layouts [N], positions and actions of full length [N, 2], no wall within reach."""
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        while sum(len(ids) for ids, _, _ in found) < self.transitions:
            ids = draw_layouts(self.world, "held_out", self.transitions, generator)
            here = draw_positions(self.world, ids, generator)
            angle = 2 * math.pi * torch.rand(len(ids), generator=generator)
            action = self.world.action_bound * torch.stack([angle.cos(), angle.sin()], -1)
            moved = self._ahead((ids, here, action), torch.arange(0.0, 360.0, 30.0)) - here[:, None]
            free = (moved.norm(dim=-1) > 0.99 * self.world.action_bound).all(1)
            found.append((ids[free], here[free], action[free]))
        ids, here, action = (torch.cat(part)[: self.transitions] for part in zip(*found, strict=True))
        return ids, here, action

    def _ahead(self, places: tuple[Tensor, Tensor, Tensor], degrees: Tensor) -> Tensor:
        """Where a step leads that turns aside by angles [A]: [N, A, 2]. Resets the world."""
        ids, here, action = places
        self.world.reset(ids, here)
        angle = torch.deg2rad(degrees)
        x, y = action[:, None].unbind(-1)
        turned = torch.stack([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()], -1)
        return self.world.advance(here[:, None].expand_as(turned).contiguous(), turned)

    def _seen(self, jepa: EnergyModel, places: tuple[Tensor, Tensor, Tensor], degrees: Tensor) -> Tensor:
        """States [N, A, D] of what is seen there."""
        ahead = self._ahead(places, degrees)
        ids = places[0].repeat_interleave(len(degrees))
        return encode_at(self.world, jepa, ids, ahead.flatten(0, 1)).unflatten(0, (-1, len(degrees)))


def _even(count: int, size: int, seed: int) -> Tensor:
    """Numbers [count, size] in [0, 1) that fill the cube evenly, so that few are enough to tell shares."""
    if size == 0:
        return torch.zeros(count, 0)
    return torch.quasirandom.SobolEngine(size, scramble=True, seed=seed).draw(count)
