"""The exam `street` of E3: real video, watched. Which half second follows, and what is surprising.

Legend: N moments, T frames of an episode, h of them known, H that follow, D state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_jepa.evaluation.energy_figures import surprise_figure
from lightning_jepa.evaluation.ranking import auroc, share_told
from lightning_jepa.evaluation.report import Report, Trained
from lightning_jepa.evaluation.results import Rows, mean
from lightning_jepa.evaluation.watching import Watcher
from lightning_jepa.protocols import EnergyModel
from lightning_jepa.types import Training


class Film(Protocol):
    """See `data_pipelines.source.Source`."""

    def count(self, split: str) -> int:
        """Episodes of a split."""
        ...

    def episodes(self, split: str, numbers: range) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Each with `observations` [T, C, H, W]."""
        ...


class Examinee(Trained, Protocol):
    """A trained stage."""

    jepa: EnergyModel


class StreetExam:
    """Ranks what followed against what did not, at every moment of held-out minutes, for one seed.

    Args:
        film: of which a part was never trained on.
        split: that part.
        context: h, frames known.
        horizon: H, frames that follow.
        targets, name, note: see `TwoRoomsExam`.

    Raises:
        ValueError: where it runs, if there are fewer than two episodes of the split, or they are too short.
    """

    def __init__(
        self,
        *,
        film: Film,
        split: str = "test",
        context: int = 3,
        horizon: int = 5,
        targets: Mapping[str, Mapping[str, Any]] | None = None,
        name: str = "street",
        note: str | None = None,
    ) -> None:
        self.film, self.split, self.context, self.horizon = film, split, context, horizon
        self._past = max(context - 1, horizon)  # frames that are looked at before the newest that is known
        protocol = {
            "moments": f"every frame of the film's part {split}, which was never trained on",
            "continuations": f"{horizon} frames after {context} that are known",
            "elsewhere": "what follows a moment of another part of those minutes",
            "reversal": "the frames that follow, the last first",
            "going back": "the frames before the newest that is known, the last first",
            "intervals": "95 %: Student's t over seeds",
        }
        self.report = Report(name, protocol, targets, note)

    def run(self, stage: Examinee, seed: int, out: Path, training: Training) -> dict[str, float]:
        """Write `out/seed_<seed>.json` and `out/figures`; returns the metrics' values."""
        stage.to(torch.device("cpu"))
        stage.eval()
        watcher = Watcher(stage.jepa)
        count = self.film.count(self.split)
        if not count:
            raise ValueError(f"no episodes for {self.split}: keep some, such as collection.source.test_share=0.25")
        films = np.stack([e.observations for e, _ in self.film.episodes(self.split, range(count))])
        if len(films) < 2 or films.shape[1] <= self._past + self.horizon:
            raise ValueError(
                f"{len(films)} held-out episode(s) of {films.shape[1]} frames: give two or more, of more than "
                f"{self._past} + {self.horizon} frames"
            )
        states = watcher.states(films)
        pixels = torch.from_numpy(films).flatten(2).float() / 255
        metrics = self._ranks(states, watcher.energy)
        controls = {name: {"pixels": row} for name, row in self._ranks(pixels, still).items()}
        cut = films.shape[1] // 2
        spliced = torch.cat([states[0, :cut], states[len(states) // 2, cut:]])
        curves = {"as it was": watcher.surprise(states[:1], self.context)[0]}
        curves["with a cut"] = watcher.surprise(spliced[None], self.context)[0]
        metrics["surprise_at_a_cut"] = mean(
            [float(curves["with a cut"][cut - self.context] / curves["as it was"].median())]
        )
        results = self.report.write(out, seed, metrics, training.cost, controls=controls)
        drawn = {name: curve.numpy() for name, curve in curves.items()}
        surprise_figure(out / "figures" / "surprise.png", films[0], drawn, cut)
        return results.values

    def _ranks(self, states: Tensor, energy: Any) -> Rows:
        """Of what followed against what did not, by an energy of what is known [N, h, D] and what may follow [N, H, D].

        Args:
            states: [episodes, T, D].
            energy: low for what is likely.
        """
        windows = states.unfold(1, self._past + 1 + self.horizon, 1).movedim(-1, 2)  # [episodes, moments, frames, D]
        before, newest, true = windows.split([self._past, 1, self.horizon], 2)
        known = torch.cat([before, newest], 2)[:, :, -self.context :].flatten(0, 1)
        elsewhere = true.roll(len(true) // 2, 0)
        back = before[:, :, -self.horizon :].flip(2)  # the film turns round: nothing jumps
        wrong = {"elsewhere": elsewhere, "reversal": true.flip(2), "going_back": back}
        followed = energy(known, true.flatten(0, 1))
        rows: Rows = {}
        for name, y in wrong.items():
            not_so = energy(known, y.flatten(0, 1))
            rows |= {f"auroc_{name}": auroc(followed, not_so), f"share_{name}": share_told(followed, not_so)}
        return rows


def still(seen: Tensor, y: Tensor) -> Tensor:
    """What needs no model: how far pixels [N, H, D] are from those last seen; the order of frames does not count."""
    return (y - seen[:, -1:]).square().mean((1, 2))
