"""Walking through batches by number: here, or in worker processes; exactly, for any number of them.

As a batch is a function of its number alone, the order of batches is the same for any number of worker processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data_pipelines.ahead import Ahead
from data_pipelines.episodes import DamagedEpisode
from data_pipelines.rooms import Rooms, SharedRooms
from data_pipelines.windows import Skipped, WindowBatches
from lightning_jepa.types import Window

_FAILED = -1
_PREFETCH = 2  # batches under way for each worker
_HELD = 2  # batches that the main process may hold and yet need not copy

Cut = tuple[tuple[Window, ...], Skipped]


class _Here:
    """Cuts batches where they are asked for; pinned where there is a GPU, which copies from there while it works.

    Args:
        windows: batches by number.
    """

    def __init__(self, windows: WindowBatches) -> None:
        self.windows, self._rooms, self._pinned = windows, Rooms(windows.picture_bytes), torch.cuda.is_available()

    def walk(self, batches: range) -> Iterator[Cut]:
        """The batches of these numbers."""
        for batch in batches:
            pictures = self._rooms.take()
            others = torch.empty(self.windows.other_bytes, dtype=torch.uint8)
            room = self.windows.room(pictures, others)
            skipped = self.windows.fill(batch, room)
            if self._pinned:
                room = self.windows.room(pictures.pin_memory(), others.pin_memory())
            del pictures
            yield room, skipped
            del room  # its memory can hold the next one, if nobody else uses it

    def close(self) -> None:
        """Nothing to end."""


class _Cutter(Dataset[tuple[int, Skipped]]):
    """What a worker process does: cut the batch of a number into the room of a number.

    Args:
        windows: batches by number.
        memory: of the rooms, shared; uint8 [bytes] each.
    """

    def __init__(self, windows: WindowBatches, memory: list[torch.Tensor]) -> None:
        self.windows, self.memory = windows, memory

    def __getitem__(self, item: tuple[int, int]) -> tuple[int, Skipped]:
        batch, room = item
        pictures, others = self.parts(room)
        try:
            return room, self.windows.fill(batch, self.windows.room(pictures, others))
        except DamagedEpisode as error:  # raised in the main process, so that its message stays one message
            return _FAILED, Skipped(0, str(error))

    def parts(self, room: int) -> list[torch.Tensor]:
        """The memory of a room, for pictures and for the rest."""
        return list(self.memory[room].split([self.windows.picture_bytes, self.windows.other_bytes]))


class _Elsewhere:
    """Lets worker processes cut batches into shared memory.

    The main process names the room to fill with each batch that it asks for; what comes back is that number. Rooms are
    free again when their batch is not used any more, so that none is written to before.

    Args:
        windows: batches by number.
        workers: processes.
        start_method: fork, spawn or forkserver; None for the platform's.
    """

    def __init__(self, windows: WindowBatches, workers: int, start_method: str | None) -> None:
        self.workers, self.start_method, self._pinned = workers, start_method, torch.cuda.is_available()
        self.rooms = SharedRooms(windows.picture_bytes + windows.other_bytes, workers * _PREFETCH + 1 + _HELD)
        self._cutter = _Cutter(windows, self.rooms.memory)
        self._numbers = _Numbers(self.rooms)
        self._loader: DataLoader[Any] | None = None  # nothing that it holds may hold it: it has to end when let go of

    def walk(self, batches: range) -> Iterator[Cut]:
        """The batches of these numbers."""
        self._numbers.batches = batches
        if self._loader is None:
            self._loader = self._open()
        for room, skipped in self._loader:
            if room == _FAILED:
                raise DamagedEpisode(skipped.last)
            pictures, others = self._cutter.parts(room)
            others, pictures = others.clone(), self.rooms.lend(room, len(pictures))
            if self._pinned:
                pictures, others = pictures.pin_memory(), others.pin_memory()
            windows = self._cutter.windows.room(pictures, others)
            del pictures
            yield windows, skipped
            del windows

    def _open(self) -> DataLoader[Any]:
        return DataLoader(
            self._cutter,
            batch_size=None,  # items are whole batches already
            sampler=self._numbers,
            num_workers=self.workers,
            persistent_workers=True,
            prefetch_factor=_PREFETCH,
            multiprocessing_context=self.start_method,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # else it draws from the one that training draws from
        )

    def close(self) -> None:
        """End the workers; another walk starts new ones.

        Left to the garbage collector, they may end only after its time-out: it can close their pipes first.
        """
        self._loader = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loader": None}  # processes stay where they were started


class _Numbers(Sampler[tuple[int, int]]):
    """The batches of one walk, each with the room to put it in."""

    def __init__(self, rooms: SharedRooms) -> None:
        self.rooms, self.batches = rooms, range(0)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        self.rooms.reset()  # the loader has waited for all that was under way when it asks for the first one
        for batch in self.batches:
            yield batch, self.rooms.take()


class Batches:
    """A sized stream of batches: exactly `steps` in an epoch, for any number of workers; each walk is the next epoch.

    It is not itself a DataLoader, so that Lightning leaves it as it is: rank and number of ranks are in the plan.

    Args:
        windows: batches by number.
        steps: batches in an epoch.
        workers: processes that cut windows; 0 cuts them in this one, which is best for small frames.
        start: number of the first batch.
        repeat: stay with this epoch's batches.
        skip_limit: share of an epoch's rows that may be skipped.
        start_method: of the workers: fork, spawn or forkserver; None for the platform's.
        ahead: fetches what the next batches need; None where nothing has to be fetched.

    Attributes:
        next: number of the batch that follows the last one given.
        waited: seconds that were spent waiting for batches, since the epoch began.
        skipped: rows that were skipped since the epoch began.
    """

    def __init__(
        self,
        windows: WindowBatches,
        steps: int,
        workers: int,
        start: int = 0,
        repeat: bool = False,
        skip_limit: float = 0.0,
        start_method: str | None = None,
        ahead: Ahead | None = None,
    ) -> None:
        self.ahead = ahead
        self.rows, self.steps, self.repeat, self.skip_limit = windows.plan.batch_size, steps, repeat, skip_limit
        self.start = self.next = start
        self.waited, self.skipped = 0.0, 0
        self._source = _Elsewhere(windows, workers, start_method) if workers else _Here(windows)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Window, ...]]:
        # An epoch counts when its first batch is asked for: Lightning and PyTorch also make iterators they don't use.
        end = (self.start // self.steps + 1) * self.steps
        self.next = self.start
        self.waited, self.skipped = 0.0, 0
        if not self.repeat:
            self.start = end
        cuts = self._source.walk(range(self.next, end))
        while True:
            began = time.perf_counter()
            if self.ahead is not None:
                self.ahead.reach(self.next)
            cut = next(cuts, None)
            if cut is None:
                return
            batch, skipped = cut
            self._count(skipped)
            self.next += 1
            self.waited += time.perf_counter() - began
            yield batch
            del batch, cut

    def close(self) -> None:
        """End all processes; another walk starts new ones."""
        self._source.close()
        if self.ahead is not None:
            self.ahead.close()

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
