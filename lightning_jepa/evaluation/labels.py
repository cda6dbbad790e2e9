"""The exam `fashion` of E3: what a linear classifier reads off states that were learned from pictures without labels.

Legend: N pictures, D state, Y classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_jepa.evaluation.energy_figures import neighbours_figure
from lightning_jepa.evaluation.episodes import share
from lightning_jepa.evaluation.report import Report, Trained
from lightning_jepa.evaluation.results import Rows
from lightning_jepa.types import Training

BATCH = 512


class LabelledPictures(Protocol):
    """Pictures [N, H, W] and their classes [N], by split."""

    pictures: dict[str, NDArray[np.uint8]]
    labels: dict[str, NDArray[np.uint8]]


class Examinee(Trained, Protocol):
    """A trained `LinearProbing`."""

    encoder: Any

    def __call__(self, observations: Tensor) -> Tensor:
        """uint8 [B, T, C, H, W] -> logits [B, T, Y]."""
        ...


class LabelExam:
    """Measures a linear probe on all pictures that nothing was trained on, for one seed.

    Args:
        source: of pictures and labels.
        split: whose pictures.
        shown: pictures whose neighbours are drawn.
        targets, name, note: see `TwoRoomsExam`.
    """

    def __init__(
        self,
        *,
        source: LabelledPictures,
        split: str = "test",
        shown: int = 8,
        targets: Mapping[str, Mapping[str, Any]] | None = None,
        name: str = "fashion",
        note: str | None = None,
    ) -> None:
        self.source, self.split, self.shown = source, split, shown
        protocol = {
            "pictures": f"{len(source.labels[split])} of {split}",
            "probe": "linear, on frozen standardised states",
            "intervals": "95 %: Wilson",
        }
        self.report = Report(name, protocol, targets, note)

    @torch.no_grad()
    def run(self, stage: Examinee, seed: int, out: Path, training: Training) -> dict[str, float]:
        """Write `out/seed_<seed>.json` and `out/figures`; returns the metrics' values.

        Raises:
            ValueError: if the checkpoint is not one of the probe.
        """
        if not hasattr(stage, "encoder"):
            raise ValueError("this exam is the probe's: evaluate a checkpoint of train=probe")
        stage.to(torch.device("cpu"))
        stage.eval()
        pictures = torch.from_numpy(self.source.pictures[self.split].copy())[:, None, None]  # [N, 1, 1, H, W]
        labels = torch.from_numpy(self.source.labels[self.split].astype(np.int64))
        found = torch.cat([stage(part)[:, 0] for part in pictures.split(BATCH)]).argmax(-1)
        states = torch.cat([stage.encoder(part)[:, 0].float() for part in pictures.split(BATCH)])
        metrics: Rows = {"linear_probe": share(found == labels)}
        classes = {str(y): {"accuracy": share(found[labels == y] == y)} for y in sorted(set(labels.tolist()))}
        results = self.report.write(out, seed, metrics, training.cost, tables={"classes": classes})
        queries = states[: self.shown]
        nearest = torch.cdist(queries, states).topk(9, largest=False).indices
        neighbours_figure(out / "figures" / "neighbours.png", pictures[nearest, 0, 0].numpy())
        return results.values
