"""Memory for pictures, used again as soon as nobody holds the batch that lies in it.

Memory that is new to a process costs a page fault for each 4 KiB, and shared memory more than that: several times what
it takes to copy small frames into it. So memory is lent to PyTorch, and comes back when the last tensor on it is gone.
A batch that somebody keeps stays as it is, and the next ones go elsewhere.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray


def lend(memory: NDArray[np.uint8], returned: Callable[[], object]) -> torch.Tensor:
    """A tensor on this memory; `returned` is called when it and all views of it are gone."""
    lease = memory.view()  # PyTorch keeps this array, and nothing else does, as long as a tensor uses its memory
    weakref.finalize(lease, returned).atexit = False
    return torch.from_numpy(lease)


class Rooms:
    """As much memory as there are batches in use at a time.

    Args:
        size: bytes of each room.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._free: list[NDArray[np.uint8]] = []

    def take(self) -> torch.Tensor:
        """A room that nobody uses: uint8 [size], with anything in it."""
        memory = self._free.pop() if self._free else np.empty(self.size, np.uint8)
        return lend(memory, lambda: self._free.append(memory))


class SharedRooms:
    """Rooms in memory that several processes share; which of them are free is known to the main process alone.

    Args:
        size: bytes of each room.
        count: how many.

    Attributes:
        memory: of each room, uint8 [size].
    """

    def __init__(self, size: int, count: int) -> None:
        self.memory = [torch.empty(size, dtype=torch.uint8).share_memory_() for _ in range(count)]
        self._free, self._lent = list(range(count)), set[int]()

    def reset(self) -> None:
        """Nothing is under way in other processes: all rooms are free but those that are lent."""
        self._free = [room for room in range(len(self.memory)) if room not in self._lent]

    def take(self) -> int:
        """The number of a free room, to be filled by another process."""
        return self._free.pop()

    def lend(self, room: int, size: int) -> torch.Tensor:
        """The first bytes of a filled room: where they lie, if another room is free then, else copied."""
        part = self.memory[room][:size]
        if not self._free:
            self._free.append(room)
            return part.clone()
        self._lent.add(room)
        return lend(part.numpy(), lambda: self._returned(room))

    def _returned(self, room: int) -> None:
        self._lent.discard(room)
        self._free.append(room)
