"""Cutting batches of windows out of episodes: what a plan asks for, into memory that is given.

Legend: B batch, L levels, T frames of a window, C H W image, A action, P body, K energies, N truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipelines.episodes import DamagedEpisode, EpisodeFolder
from data_pipelines.plan import Level, Plan, Rows, hashed
from data_pipelines.schema import ARRAYS
from lightning_jepa.types import Window

_SUBSTITUTES = 100
_ALIGNED = 64  # bytes

Shapes = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class Skipped(NamedTuple):
    """Rows of a batch that were taken from other places because theirs were damaged."""

    rows: int
    last: str  # what was wrong with the last one


class _Part(NamedTuple):
    """Where a tensor of a batch lies."""

    level: int
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    first: int
    last: int


class WindowBatches:
    """Cuts the windows that a plan asks for.

    Args:
        episodes: where they are read.
        plan: which to take.
        levels: what to cut.
        skip: take another window where one is damaged, found from the damaged one's number; else raise.

    Attributes:
        picture_bytes: memory that the observations of a batch take, of all levels.
        other_bytes: memory that the rest takes.
    """

    def __init__(self, episodes: EpisodeFolder, plan: Plan, levels: Sequence[Level], skip: bool = False) -> None:
        self.episodes, self.plan, self.levels, self.skip = episodes, plan, tuple(levels), skip
        shapes = [self._shapes(level) for level in self.levels]
        self._parts = list(_laid_out(shapes, lambda name: name == "observations"))
        self.picture_bytes = self._parts[-1].last
        self._parts += _laid_out(shapes, lambda name: name != "observations")
        self.other_bytes = self._parts[-1].last
        empty = [part for part in self._parts if part.first == part.last]
        self._nothing = {(part.level, part.name): torch.empty(part.shape, dtype=part.dtype) for part in empty}

    def _shapes(self, level: Level) -> Shapes:
        b, (t, stride), manifest = self.plan.batch_size, level, self.episodes.manifest
        return {
            "observations": (torch.uint8, (b, t, *manifest.observation_shape)),
            "actions": (torch.float32, (b, t - 1, stride, manifest.widths["actions"])),
            "body": (torch.float32, (b, t, manifest.widths["body"])),
            "energies": (torch.float32, (b, t, manifest.widths["energies"])),
            "truth": (torch.float32, (b, t, manifest.widths["truth"])),
            "plans": (torch.float32, (b, t - 1, stride, manifest.widths["plans"])),
            "goal": (torch.uint8, (b, *manifest.observation_shape) if manifest.has_goal else (b, 0)),
            "weights": (torch.float32, (b, manifest.widths["weights"])),
            "times": (torch.int64, (b, t)),
            "mask": (torch.bool, (b,)),
        }

    def room(self, pictures: torch.Tensor, others: torch.Tensor) -> tuple[Window, ...]:
        """A `Window` for each level, in memory uint8 [picture_bytes] and uint8 [other_bytes]."""
        fields: list[dict[str, torch.Tensor]] = [{} for _ in self.levels]
        for level, name, dtype, shape, first, last in self._parts:
            memory = pictures if name == "observations" else others
            nothing = self._nothing.get((level, name))
            fields[level][name] = memory[first:last].view(dtype).view(shape) if nothing is None else nothing
        return tuple(Window(**tensors) for tensors in fields)

    def fill(self, batch: int, windows: tuple[Window, ...]) -> Skipped:
        """Cut the batch of this number into `windows`.

        Raises:
            DamagedEpisode: if an episode can't be read and none may be skipped, or too many in a row can't.
        """
        rows = self.plan(batch)
        # Rows are copied through NumPy, whose small assignments cost a fraction of PyTorch's.
        raw = [
            {name: _row_bytes(getattr(window, name)) for name in ARRAYS if (level, name) not in self._nothing}
            for level, window in enumerate(windows)
        ]
        skipped, last = 0, ""
        if not self.episodes.ready(rows.episodes):
            for row in range(len(rows.episodes)):
                try:
                    self._pictures(rows, row, raw)
                except DamagedEpisode as error:
                    if not self.skip:
                        raise
                    skipped, last = skipped + 1, str(error)
                    self._substitute(rows, row, raw, last)
        for window, level, arrays, starts in zip(windows, self.levels, raw, rows.starts, strict=True):
            for name, array in arrays.items():
                if name in ("actions", "plans"):
                    self.episodes.copy(rows.episodes, name, starts, level.steps, 1, array)
                elif name in ("goal", "weights"):
                    self.episodes.copy(rows.episodes, name, np.zeros_like(starts), 1, 1, array)
                elif name != "observations" or not self.episodes.decoded:
                    self.episodes.copy(rows.episodes, name, starts, level.length, level.stride, array)
            window.times.numpy()[:] = starts[:, None] + np.arange(level.length) * level.stride
            window.mask.numpy()[:] = rows.mask
        return Skipped(skipped, last)

    def _pictures(self, rows: Rows, row: int, raw: list[dict[str, NDArray[np.uint8]]]) -> None:
        """All that can fail for a row: its episode is found good, and its pictures are decoded if they are not raw."""
        episode = int(rows.episodes[row])
        self.episodes.content(episode)
        if self.episodes.decoded:
            for level, arrays, starts in zip(self.levels, raw, rows.starts, strict=True):
                start = int(starts[row])
                self.episodes.decode(episode, start, level.length, level.stride, arrays["observations"][row])

    def _substitute(self, rows: Rows, row: int, raw: list[dict[str, NDArray[np.uint8]]], problem: str) -> None:
        """Put another window into a row, found from the damaged one's number."""
        damaged = int(rows.windows[row])
        for attempt in range(_SUBSTITUTES):
            other = (hashed(damaged, attempt) % np.uint64(self.plan.total)).astype(np.int64)
            found = self.plan.rows(other, np.ones(1, bool))
            rows.windows[row], rows.episodes[row], rows.starts[:, row] = other[0], found.episodes[0], found.starts[:, 0]
            try:
                self._pictures(rows, row, raw)
            except DamagedEpisode as error:
                problem = str(error)
                continue
            return
        raise DamagedEpisode(f"{_SUBSTITUTES} windows in a row are damaged; the last: {problem}")


def _laid_out(shapes: Sequence[Shapes], chosen: Callable[[str], bool]) -> Iterator[_Part]:
    """The chosen tensors of all levels, one behind the other."""
    end = 0
    for level, tensors in enumerate(shapes):
        for name, (dtype, shape) in tensors.items():
            if chosen(name):
                first = -(-end // _ALIGNED) * _ALIGNED
                end = first + prod(shape) * dtype.itemsize
                yield _Part(level, name, dtype, shape, first, end)


def _row_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """A contiguous tensor [B, ...] as uint8 [B, bytes], sharing its memory."""
    return tensor.numpy().reshape(len(tensor), -1).view(np.uint8)
