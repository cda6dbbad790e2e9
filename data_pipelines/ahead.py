"""Shards that have to be fetched or unpacked, fetched before training asks for them.

Windows come from one block of shards at a time. While training is in a block, the shards of the next one are brought
into the cache by processes of their own, as far as the cache holds both; whoever needs a shard earlier waits for it
there or fetches it.
"""

from __future__ import annotations

import warnings
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

from data_pipelines.episodes import EpisodeFolder
from data_pipelines.plan import ShuffledWindows

_PROCESSES = 2


class Ahead:
    """Keeps the cache ahead of training.

    Args:
        episodes: that are read.
        plan: in which order.
    """

    def __init__(self, episodes: EpisodeFolder, plan: ShuffledWindows) -> None:
        self.episodes, self.plan = episodes, plan
        self._asked: set[int] = set()
        self._block: tuple[int, int] | None = None
        self._pool: ProcessPoolExecutor | None = None

    def reach(self, batch: int) -> None:
        """Training is at the batch of this number."""
        block = self.plan.block_of(batch)
        if block == self._block:
            return
        self._block = block
        shards = self._fitting([*self.plan.shards_of(block), *self.plan.shards_of(self.plan.following(block))])
        missing = [shard for shard in shards if shard not in self._asked]
        self._asked = set(shards)
        try:
            for shard in missing:
                self._processes().submit(_fetch, shard)
        except BrokenExecutor:
            self.close()
            warnings.warn(
                "shards cannot be fetched ahead: the processes for it did not start. A script that trains needs "
                "if __name__ == '__main__': around what it does",
                stacklevel=2,
            )

    def _fitting(self, shards: list[int]) -> list[int]:
        """The first of them, as many as the cache holds at once."""
        sizes = np.cumsum([self.episodes.cached_bytes(shard) for shard in shards])
        assert self.episodes.cache is not None
        return shards[: int(np.searchsorted(sizes, self.episodes.cache.limit, side="right"))]

    def _processes(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Not forked, which would share this process's connections.
            self._pool = ProcessPoolExecutor(_PROCESSES, get_context("spawn"), _begin, (self.episodes,))
        return self._pool

    def close(self) -> None:
        """Leave what is not under way."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_block": None, "_asked": set()}  # processes stay where they are


_EPISODES: list[EpisodeFolder] = []  # of this process


def _begin(episodes: EpisodeFolder) -> None:
    _EPISODES[:] = [episodes]


def _fetch(shard: int) -> None:
    _EPISODES[0].fetch(shard)
