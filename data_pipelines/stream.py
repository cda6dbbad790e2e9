"""Walking through batches by number: here, or in worker processes; exactly, for any number of them.

As a batch is a function of its number alone, the order of batches is the same for any number of worker processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import torch

from data_pipelines.ahead import Ahead
from data_pipelines.rooms import Rooms
from data_pipelines.windows import Skipped, WindowBatches
from data_pipelines.workers import Workers
from lightning_jepa.types import Window


class _Here:
    """Cuts batches where they are asked for; pinned where there is a GPU, which copies from there while it works.

    Args:
        windows: batches by number.
    """

    def __init__(self, windows: WindowBatches) -> None:
        self.windows, self._rooms, self._pinned = windows, Rooms(windows.picture_bytes), torch.cuda.is_available()

    def walk(self, batches: range) -> Iterator[tuple[tuple[Window, ...], Skipped]]:
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
        self._source = Workers(windows, workers, start_method) if workers else _Here(windows)

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
