"""Shards -> batches of windows: `WindowBatches` cuts what a plan asks for, `Batches` walks through the numbers.

As a batch is a function of its number alone, the order of batches is the same for any number of worker processes.
Legend: B batch, L levels, T frames of a window, C H W image, A action, P body, K energies, N truth.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from data_pipelines.episodes import DamagedEpisode, EpisodeFolder
from data_pipelines.plan import Level, Plan, Rows, hashed
from lightning_jepa.types import Window

_ARRAYS = ("observations", "actions", "body", "energies", "truth")
_SUBSTITUTES = 100
_FAILED = -1
_PREFETCH = 2  # batches under way for each worker


class Skipped(NamedTuple):
    """Rows of a batch that were taken from other places because theirs were damaged."""

    rows: int
    last: str  # what was wrong with the last one


class WindowBatches:
    """Cuts the windows that a plan asks for.

    Args:
        episodes: where they are read.
        plan: which to take.
        levels: what to cut.
        skip: take another window where one is damaged, found from the damaged one's number; else raise.
    """

    def __init__(self, episodes: EpisodeFolder, plan: Plan, levels: Sequence[Level], skip: bool = False) -> None:
        self.episodes, self.plan, self.levels, self.skip = episodes, plan, tuple(levels), skip

    def empty(self, rows: int, pinned: bool = False, shared: bool = False) -> tuple[Window, ...]:
        """Room for a batch: one `Window` for each level."""
        manifest, widths = self.episodes.manifest, self.episodes.manifest.widths

        def room(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            tensor = torch.empty(shape, dtype=dtype, pin_memory=pinned)
            return tensor.share_memory_() if shared else tensor

        return tuple(
            Window(
                observations=room(rows, length, *manifest.observation_shape, dtype=torch.uint8),
                actions=room(rows, length - 1, stride, widths["actions"]),
                body=room(rows, length, widths["body"]),
                energies=room(rows, length, widths["energies"]),
                truth=room(rows, length, widths["truth"]),
                times=room(rows, length, dtype=torch.int64),
                mask=room(rows, dtype=torch.bool),
            )
            for length, stride in self.levels
        )

    def fill(self, batch: int, windows: tuple[Window, ...]) -> Skipped:
        """Cut the batch of this number into `windows`.

        Raises:
            DamagedEpisode: if an episode can't be read and none may be skipped, or too many in a row can't.
        """
        rows = self.plan(batch)
        # Rows are copied through NumPy, whose small assignments cost a fraction of PyTorch's.
        raw = [tuple(_row_bytes(tensor) for tensor in window[: len(_ARRAYS)]) for window in windows]
        skipped, last = 0, ""
        for row in range(len(rows.episodes)):
            try:
                self._pictures(rows, row, raw)
            except DamagedEpisode as error:
                if not self.skip:
                    raise
                skipped, last = skipped + 1, str(error)
                self._substitute(rows, row, raw, last)
        for window, level, arrays, starts in zip(windows, self.levels, raw, rows.starts, strict=True):
            for name, array in zip(_ARRAYS, arrays, strict=True):
                if name == "actions":
                    self.episodes.copy(rows.episodes, name, starts, level.steps, 1, array)
                elif name != "observations" or not self.episodes.decoded:
                    self.episodes.copy(rows.episodes, name, starts, level.length, level.stride, array)
            window.times.numpy()[:] = starts[:, None] + np.arange(level.length) * level.stride
            window.mask.numpy()[:] = rows.mask
        return Skipped(skipped, last)

    def _pictures(self, rows: Rows, row: int, raw: list[tuple[NDArray[np.uint8], ...]]) -> None:
        """All that can fail for a row: its episode is found good, and its pictures are decoded if they are not raw."""
        episode = int(rows.episodes[row])
        self.episodes.content(episode)
        if self.episodes.decoded:
            for level, (observations, *_), starts in zip(self.levels, raw, rows.starts, strict=True):
                start = int(starts[row])
                self.episodes.decode(episode, start, level.length, level.stride, observations[row])

    def _substitute(self, rows: Rows, row: int, raw: list[tuple[NDArray[np.uint8], ...]], problem: str) -> None:
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


def _row_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """A contiguous tensor [B, ...] as uint8 [B, bytes], sharing its memory."""
    return tensor.numpy().reshape(len(tensor), -1).view(np.uint8)


class _InProcess(Dataset[tuple[tuple[Window, ...], Skipped]]):
    """Cuts batches where it is called, each into fresh memory, pinned where there is a GPU to copy it to."""

    def __init__(self, windows: WindowBatches, rows: int) -> None:
        self.windows, self.rows, self.pinned = windows, rows, torch.cuda.is_available()

    def __getitem__(self, batch: int) -> tuple[tuple[Window, ...], Skipped]:
        room = self.windows.empty(self.rows, pinned=self.pinned)
        return room, self.windows.fill(batch, room)

    def taken(self, item: tuple[tuple[Window, ...], Skipped]) -> tuple[tuple[Window, ...], Skipped]:
        """The batch, as it is."""
        return item


class _Ring(Dataset[tuple[int, Skipped]]):
    """Cuts batches in worker processes, into a ring of shared memory that is used again and again.

    Fresh shared memory costs a page fault for each 4 KiB, several times what it takes to copy a batch of small frames;
    so workers send nothing but the number of the slot, and the main process copies the batch out before it asks for
    the next one. A slot is free by then: the loader has at most `slots - 1` batches under way.
    """

    def __init__(self, windows: WindowBatches, rows: int, slots: int) -> None:
        self.local = _InProcess(windows, rows)
        self.slots = [windows.empty(rows, shared=True) for _ in range(slots)]

    def __getitem__(self, batch: int) -> tuple[int, Skipped]:
        slot = batch % len(self.slots)
        try:
            return slot, self.local.windows.fill(batch, self.slots[slot])
        except DamagedEpisode as error:  # raised in the main process, so that its message stays one message
            return _FAILED, Skipped(0, str(error))

    def taken(self, item: tuple[int, Skipped]) -> tuple[tuple[Window, ...], Skipped]:
        """The batch, copied out of its slot."""
        slot, skipped = item
        if slot == _FAILED:
            raise DamagedEpisode(skipped.last)
        room = self.local.windows.empty(self.local.rows, pinned=self.local.pinned)
        for window, source in zip(room, self.slots[slot], strict=True):
            for tensor, shared in zip(window, source, strict=True):
                tensor.copy_(shared)
        return room, skipped


class _Numbers(Sampler[int]):
    """The numbers of the batches of one walk."""

    def __init__(self) -> None:
        self.numbers = range(0)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)


class Batches:
    """A sized stream of batches: exactly `steps` in an epoch, for any number of workers; each walk is the next epoch.

    It is not itself a DataLoader, so that Lightning leaves it as it is: rank and number of ranks are in the plan.

    Args:
        windows: batches by number.
        rows: of a batch.
        steps: batches in an epoch.
        workers: processes that cut windows; 0 cuts them in this one, which is best for small frames.
        start: number of the first batch.
        repeat: stay with this epoch's batches.
        skip_limit: share of an epoch's rows that may be skipped.
        start_method: of the workers: fork, spawn or forkserver; None for the platform's.

    Attributes:
        next: number of the batch that follows the last one given.
        waited: seconds that were spent waiting for batches, since the epoch began.
        skipped: rows that were skipped since the epoch began.
    """

    def __init__(
        self,
        windows: WindowBatches,
        rows: int,
        steps: int,
        workers: int,
        start: int = 0,
        repeat: bool = False,
        skip_limit: float = 0.0,
        start_method: str | None = None,
    ) -> None:
        self.rows, self.steps, self.repeat, self.skip_limit = rows, steps, repeat, skip_limit
        self.start = self.next = start
        self.waited, self.skipped = 0.0, 0
        self._numbers, self._workers, self._start_method = _Numbers(), workers, start_method
        self._source = _Ring(windows, rows, workers * _PREFETCH + 1) if workers else _InProcess(windows, rows)
        self._loader: DataLoader[Any] | None = None
        self._items: Iterator[Any] | None = None

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Window, ...]]:
        # An epoch counts when its first batch is asked for: Lightning and PyTorch also make iterators they don't use.
        end = (self.start // self.steps + 1) * self.steps
        self.next, self._numbers.numbers = self.start, range(self.start, end)
        self.waited, self.skipped = 0.0, 0
        if not self.repeat:
            self.start = end
        if self._loader is None:
            self._loader = self._open()
        self._items = iter(self._loader)
        while self._items is not None:
            began = time.perf_counter()
            try:
                batch, skipped = self._source.taken(next(self._items))
            except StopIteration:
                return
            self._count(skipped)
            self.next += 1
            self.waited += time.perf_counter() - began
            yield batch

    def _open(self) -> DataLoader[Any]:
        return DataLoader(
            self._source,
            batch_size=None,  # items are whole batches already
            sampler=self._numbers,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            prefetch_factor=_PREFETCH if self._workers else None,
            multiprocessing_context=self._start_method if self._workers else None,
            collate_fn=_as_it_is,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_items": None, "_loader": None}  # processes stay where they were started

    def close(self) -> None:
        """End the workers; another walk starts new ones.

        Left to the garbage collector, they may end only after its time-out: it can close their pipes first.
        """
        self._items = self._loader = None

    def state_dict(self) -> dict[str, int]:
        """Nothing: the place in the stream is in the data module's state, which Lightning restores in time.

        Lightning takes a loader without these two methods for one that can't be resumed, and warns.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Nothing to do."""

    def _count(self, skipped: Skipped) -> None:
        self.skipped += skipped.rows
        limit = self.skip_limit * self.steps * self.rows
        if self.skipped > limit:
            raise ValueError(
                f"{self.skipped} damaged windows were skipped in this epoch, more than data.skip_limit="
                f"{self.skip_limit} allows ({limit:g}). The last: {skipped.last}"
            )


def _as_it_is(item: object) -> object:
    return item
