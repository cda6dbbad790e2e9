"""The exam `bouncing_digits` of E3: which continuation of a video is plausible, and where things will be.

Legend: N clips, h frames seen, H frames that follow, D digits, F side of the map of places, Q frames of a probe.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_average_precision

from lightning_jepa.evaluation.energy_figures import completion_figure
from lightning_jepa.evaluation.ranking import auroc
from lightning_jepa.evaluation.report import Report, Trained
from lightning_jepa.evaluation.results import Figure, Rows, mean
from lightning_jepa.evaluation.watching import BATCH, Watcher
from lightning_jepa.types import Training

PLACES = 8  # along each side of the map of places


class Clips(Protocol):
    """See `data_pipelines.sources.bouncing.Clips`."""

    seen: NDArray[Any]  # [N, h, C, H, W]
    true: NDArray[Any]  # [N, H, C, H, W]
    wrong: dict[str, NDArray[Any]]
    centres: NDArray[Any]  # [N, h + H, D, 2]


class Scenes(Protocol):
    """Where clips come from."""

    side: int

    def clips(self, split: str, count: int, context: int, horizon: int) -> Clips:
        """Of a split."""
        ...


class Examinee(Trained, Protocol):
    """A trained stage."""

    jepa: Any  # an EnergyModel whose encoder has a `state_shape`


class CompletionExam:
    """Ranks continuations by their energy and reads places from predicted states, for one seed.

    A continuation is as implausible as its most surprising frame,

        F(x, y) = max over t of F(y[t-h+1 .. t], y[t+1])

    each frame being predicted from those before it. The table `rankings` has the mean over frames too, and the error of
    what is imagined from the frames seen alone, in which a change that lasts is lost among what could not be known.

    Args:
        scenes: clips with continuations that did and did not happen.
        clips: N, of held-out digits.
        split: whose digits.
        context: h, frames seen.
        horizon: H, frames that follow.
        samples: futures drawn where the model has a latent variable.
        probed: training clips that the readout of places is fitted to.
        probe_steps: of its training.
        hidden: channels between the two convolutions of the readout, EB-JEPA's; a linear one is a control.
        targets, name, note: see `TwoRoomsExam`.
    """

    def __init__(
        self,
        *,
        scenes: Scenes,
        clips: int = 400,
        split: str = "test",
        context: int = 3,
        horizon: int = 8,
        samples: int = 16,
        probed: int = 1000,
        probe_steps: int = 600,
        hidden: int = 32,
        targets: Mapping[str, Mapping[str, Any]] | None = None,
        name: str = "bouncing_digits",
        note: str | None = None,
    ) -> None:
        self.scenes, self.split = scenes, split
        self.clips, self.context, self.horizon, self.samples = clips, context, horizon, samples
        self.probed, self.probe_steps, self.hidden = probed, probe_steps, hidden
        protocol = {
            "clips": f"{clips} of {split}",
            "seen": f"{context} frames, of digits never trained on; {horizon} follow",
            "energy": f"of the most surprising frame, each predicted from the {context} before it",
            "location map": f"average precision over {PLACES} x {PLACES} places, mean over the frames that follow",
            "readout": f"two convolutions of 3 x 3, {hidden} channels between them, fitted to encoded frames",
            "intervals": "95 %: Student's t over seeds",
        }
        self.report = Report(name, protocol, targets, note)

    def run(self, stage: Examinee, seed: int, out: Path, training: Training) -> dict[str, float]:
        """Write `out/seed_<seed>.json` and `out/figures`; returns the metrics' values."""
        stage.to(torch.device("cpu"))
        stage.eval()
        watcher = Watcher(stage.jepa)
        torch.manual_seed(seed)
        places, linear = self._readouts(watcher)
        clips = self.scenes.clips(self.split, self.clips, self.context, self.horizon)
        seen = watcher.states(clips.seen)
        futures = {"true": clips.true, **clips.wrong}
        states = {name: watcher.states(frames) for name, frames in futures.items()}
        energies = {name: self._energies(watcher, seen, s_y) for name, s_y in states.items()}
        truth = self._occupied(clips.centres)[:, self.context :]
        predicted = watcher.predicted(seen, self.horizon)
        maps: dict[str, Tensor] = {
            "encoded": places(states["true"]),
            "predicted": places(predicted),
            "copy_last": places(seen[:, -1:].expand_as(states["true"])),
            "constant_velocity": self._straight_on(clips.centres),
            "linear_readout": linear(predicted),
        }
        if stage.jepa.noise:
            maps["min_z"] = places(watcher.explained(seen, states["true"]))
            maps["expected"] = self._expected(watcher, seen, places)
        precision = {name: self._precision(found, truth) for name, found in maps.items()}
        ranks = {
            way: {name: auroc(true, energies[name][way]) for name in clips.wrong}
            for way, true in energies["true"].items()
        }
        metrics: Rows = {f"auroc_{name}": row for name, row in ranks["most_surprising_frame"].items()}
        metrics["location_map"] = over_time(precision["predicted"])
        for name in ("predicted", "min_z", "expected"):
            if name in precision:
                metrics[f"location_ap_8_{name}"] = mean([precision[name][min(8, self.horizon) - 1]])
        rows = {name: {f"{t + 1}": mean([value]) for t, value in enumerate(found)} for name, found in precision.items()}
        results = self.report.write(
            out,
            seed,
            metrics,
            training.cost,
            floors={f"location_map_{name}": over_time(precision[name]) for name in _FLOORS},
            controls={"location_map": {name: over_time(precision[name]) for name in ("encoded", "linear_readout")}},
            tables={"location": rows, "rankings": ranks},
        )
        nearest = self._nearest(predicted[:3], states["true"], clips.true)
        completion_figure(out / "figures" / "completion.png", clips.seen[:3], clips.true[:3], nearest)
        return results.values

    def _energies(self, watcher: Watcher, seen: Tensor, s_y: Tensor) -> dict[str, Tensor]:
        """How implausible continuations [N, H, D] of what was seen [N, h, D] are, each [N]."""
        surprise = watcher.surprise(torch.cat([seen, s_y], 1), self.context)
        return {
            "most_surprising_frame": surprise.amax(1),
            "mean_over_frames": surprise.mean(1),
            "imagined_from_what_was_seen": watcher.energy(seen, s_y),
        }

    def _expected(self, watcher: Watcher, seen: Tensor, places: nn.Module) -> Tensor:
        """The mean map over futures drawn from the prior: what is to be expected, whatever happens."""
        found = []
        for s in seen.split(BATCH):
            drawn = watcher.drawn(s, self.horizon, self.samples)
            found.append(places(drawn.flatten(0, 1)).sigmoid().unflatten(0, drawn.shape[:2]).mean(1).logit(1e-6))
        return torch.cat(found)

    def _occupied(self, centres: NDArray[Any]) -> Tensor:
        """Centres [N, T, D, 2] -> which places hold one, bool [N, T, F, F] (y, x)."""
        cell = (torch.from_numpy(centres) * PLACES / self.scenes.side).long().clamp(0, PLACES - 1)
        index = cell[..., 1] * PLACES + cell[..., 0]
        return F.one_hot(index, PLACES**2).sum(2).clamp_max(1).bool().unflatten(-1, (PLACES, PLACES))

    def _straight_on(self, centres: NDArray[Any]) -> Tensor:
        """Maps [N, H, F, F] of an oracle who knows places and velocities of the last two frames, and no borders."""
        last, before = centres[:, self.context - 1], centres[:, self.context - 2]
        steps = torch.arange(1, self.horizon + 1)[:, None, None].numpy()
        ahead = last[:, None] + steps * (last - before)[:, None]
        return self._occupied(ahead.clip(0, self.scenes.side - 1)).float()

    def _readouts(self, watcher: Watcher) -> list[nn.Module]:
        """Readouts of places from encoded states of training clips: one with a hidden layer, and a linear one."""
        clips = self.scenes.clips("train", self.probed, self.context, self.horizon)
        states = watcher.states(clips.true).flatten(0, 1)
        occupied = self._occupied(clips.centres)[:, self.context :].flatten(0, 1)
        shape = tuple(watcher.jepa.encoder.state_shape)
        readouts: list[nn.Module] = [Readout(shape, self.hidden), Readout(shape)]
        optimizer = torch.optim.Adam([weight for one in readouts for weight in one.parameters()], 5e-3)
        for _ in range(self.probe_steps):
            some = torch.randint(len(states), (256,))
            aim = occupied[some].float()
            losses = [F.binary_cross_entropy_with_logits(one(states[some, None])[:, 0], aim) for one in readouts]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
        return [one.eval().requires_grad_(False) for one in readouts]

    def _precision(self, maps: Tensor, truth: Tensor) -> list[float]:
        """Average precision at each of the frames that follow."""
        return [
            float(binary_average_precision(maps[:, t].flatten(), truth[:, t].flatten().long()))
            for t in range(self.horizon)
        ]

    def _nearest(self, predicted: Tensor, states: Tensor, frames: NDArray[Any]) -> NDArray[Any]:
        """For predicted states [M, H, D] the frames of other clips whose states are nearest, [M, H, C, H, W]."""
        pool = states[len(predicted) :].flatten(0, 1)
        index = torch.cdist(predicted.flatten(0, 1), pool).argmin(1).numpy()
        others = frames[len(predicted) :].reshape(-1, *frames.shape[2:])
        return others[index].reshape(len(predicted), -1, *frames.shape[2:])


_FLOORS = ("copy_last", "constant_velocity")


def over_time(precision: list[float]) -> Figure:
    """The mean over the frames that follow."""
    return mean([sum(precision) / len(precision)])


class Readout(nn.Module):
    """Places from a state that is a map: a function of each place and its neighbours.

    Args:
        state_shape: (c, h, w).
        hidden: channels of a hidden layer; 0 for a linear function.
    """

    def __init__(self, state_shape: tuple[int, ...], hidden: int = 0) -> None:
        super().__init__()
        if len(state_shape) != 3:
            raise ValueError(f"states of shape {list(state_shape)}: places are read from maps [c, h, w]")
        self.state_shape = state_shape
        self.norm = nn.BatchNorm2d(state_shape[0], affine=False, momentum=None)
        channels = state_shape[0]
        first = [nn.Conv2d(channels, hidden, 3, padding=1), nn.ReLU()] if hidden else []
        self.local = nn.Sequential(*first, nn.Conv2d(hidden or channels, 1, 3, padding=1))

    def forward(self, states: Tensor) -> Tensor:
        """[N, T, D] -> logits [N, T, F, F]."""
        maps = self.local(self.norm(states.reshape(-1, *self.state_shape)))
        resized = F.adaptive_avg_pool2d(maps, PLACES)
        return resized[:, 0].unflatten(0, states.shape[:2])
