"""The exam `moving_garments` of E3: what a moving thing is has to last while it is predicted.

Legend: N clips, h frames known, H that follow, D state, c channels of a map, Y classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_jepa.evaluation.episodes import share
from lightning_jepa.evaluation.report import Report, Trained
from lightning_jepa.evaluation.results import Rows
from lightning_jepa.evaluation.street import Film
from lightning_jepa.evaluation.watching import Watcher
from lightning_jepa.types import Training


class LabelledFilm(Film, Protocol):
    """Whose episodes have a `truth` [T, F], some column of which is a class."""

    @property
    def truth_names(self) -> tuple[str, ...]:
        """F names."""
        ...


class Examinee(Trained, Protocol):
    """A trained stage."""

    jepa: Any  # an EnergyModel whose encoder has a `state_shape`


class MovingExam:
    """Reads the class off predicted states by what was learned on encoded ones, for one seed.

    The readout is linear, on mean and maximum of each channel over the map: a thing is the same wherever it is.

    Args:
        film: of moving things.
        label: the column of the truth that holds the class.
        classes: Y.
        context: h, frames known.
        horizon: H, frames that follow.
        fitted: training episodes that the readout is fitted to.
        clips: N, of held-out episodes.
        split: whose episodes.
        updates: of the readout.
        targets, name, note: see `TwoRoomsExam`.
    """

    def __init__(
        self,
        *,
        film: LabelledFilm,
        label: str = "class_0",
        classes: int = 10,
        context: int = 3,
        horizon: int = 8,
        fitted: int = 2000,
        clips: int = 1000,
        split: str = "test",
        updates: int = 1000,
        targets: Mapping[str, Mapping[str, Any]] | None = None,
        name: str = "moving_garments",
        note: str | None = None,
    ) -> None:
        self.film, self.column, self.classes = film, film.truth_names.index(label), classes
        self.context, self.horizon, self.split = context, horizon, split
        self.fitted, self.clips, self.updates = fitted, clips, updates
        protocol = {
            "clips": f"{clips} of {split}, of things never trained on; {context} frames are seen, {horizon} predicted",
            "readout": "linear, on mean and maximum of each channel, fitted to encoded frames",
            "intervals": "95 %: Wilson",
        }
        self.report = Report(name, protocol, targets, note)

    def run(self, stage: Examinee, seed: int, out: Path, training: Training) -> dict[str, float]:
        """Write `out/seed_<seed>.json`; returns the metrics' values."""
        stage.to(torch.device("cpu"))
        stage.eval()
        torch.manual_seed(seed)
        watcher, shape = Watcher(stage.jepa), tuple(stage.jepa.encoder.state_shape)
        frames, labels = self._film("train", self.fitted)
        states = pooled(watcher.states(frames[:, -1:]), shape)[:, 0]
        pixels = torch.from_numpy(frames[:, -1]).flatten(1).float()
        read, read_pixels = (self._readout(features, labels) for features in (states, pixels))
        frames, labels = self._film(self.split, self.clips)
        seen = watcher.states(frames[:, : self.context])
        ahead = watcher.predicted(seen, self.horizon)
        encoded = watcher.states(frames[:, self.context :])
        right = {
            name: [share(read(pooled(s, shape)[:, t]).argmax(-1) == labels) for t in range(self.horizon)]
            for name, s in (("predicted", ahead), ("encoded", encoded))
        }
        of_pixels = share(read_pixels(torch.from_numpy(frames[:, -1]).flatten(1).float()).argmax(-1) == labels)
        metrics: Rows = {"class_after_prediction": right["predicted"][-1]}
        controls = {"class_after_prediction": {"encoded": right["encoded"][-1], "pixels": of_pixels}}
        table = {name: {str(t + 1): row for t, row in enumerate(rows)} for name, rows in right.items()}
        return self.report.write(out, seed, metrics, training.cost, controls=controls, tables={"classes": table}).values

    def _film(self, split: str, count: int) -> tuple[NDArray[np.uint8], Tensor]:
        """The first frames [N, h + H, C, H', W'] of some episodes, and their classes [N]."""
        count, length = min(count, self.film.count(split)), self.context + self.horizon
        episodes = [episode for episode, _ in self.film.episodes(split, range(count))]
        labels = torch.tensor([int(episode.truth[0, self.column]) for episode in episodes])
        return np.stack([episode.observations[:length] for episode in episodes]), labels

    def _readout(self, features: Tensor, labels: Tensor) -> nn.Module:
        norm = nn.BatchNorm1d(features.shape[-1], affine=False, momentum=None)
        read = nn.Sequential(norm, nn.Linear(features.shape[-1], self.classes))
        optimizer = torch.optim.AdamW(read.parameters(), 1e-2, weight_decay=1e-2)
        for _ in range(self.updates):
            some = torch.randint(len(labels), (256,))
            loss = F.cross_entropy(read(features[some]), labels[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return read.eval().requires_grad_(False)


def pooled(states: Tensor, shape: tuple[int, ...]) -> Tensor:
    """States [N, T, D] that are maps [c, h, w] -> mean and maximum of each channel, [N, T, 2 c].

    Raises:
        ValueError: if they are no maps.
    """
    if len(shape) != 3:
        raise ValueError(f"states of shape {list(shape)}: this exam reads maps [c, h, w]")
    places = states.unflatten(-1, shape).flatten(3)
    return torch.cat([places.mean(-1), places.amax(-1)], -1)
