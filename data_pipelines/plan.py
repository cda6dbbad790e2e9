"""Which windows a batch takes: a pure function of the index, the seed and the batch's number.

Nothing random is stored and nothing is permuted in memory: orders are bijections computed from integer hashes, so that
any batch of any epoch is found at once, and found again after an update of NumPy, whose random streams may change.

A window is numbered by where its first level starts, through all episodes. Other levels' windows are longer or shorter;
each is laid at a random place around it, so that it holds the first level's first frame, or all of what it spans.
Legend: E episodes, S shards, B rows of a batch on one rank, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, isqrt
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
_AT_ONCE = 16  # batches that are planned together


class Level(NamedTuple):
    """Windows of `length` frames, `stride` world steps apart."""

    length: int
    stride: int

    @property
    def steps(self) -> int:
        """World steps from the first frame to the last."""
        return (self.length - 1) * self.stride


class Rows(NamedTuple):
    """What one batch takes from which episodes."""

    windows: Integers  # [B]: numbers of the windows
    episodes: Integers  # [B]
    starts: Integers  # [L, B]: first frame of each level's window
    mask: NDArray[np.bool_]  # [B]: False for padding


class Plan(Protocol):
    """The rows of each batch."""

    total: int  # number of windows
    batch_size: int  # rows for each rank

    def __call__(self, batch: int) -> Rows:
        """The rows of the batch of this number, counted over all epochs."""
        ...

    def rows(self, windows: Integers, mask: NDArray[np.bool_]) -> Rows:
        """The rows that take these windows."""
        ...


def mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): every bit of the result depends on every bit of x."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashed(*parts: int | Integers) -> NDArray[np.uint64]:
    """One hash of several integers, or of arrays of them element by element; at least one axis."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = mixed(state ^ np.atleast_1d(np.asarray(part)).astype(np.uint64))
    return state


@lru_cache(maxsize=64)
def _turns(key: tuple[int, ...]) -> list[NDArray[np.uint64]]:
    """What the six turns of a permutation begin their hashes with."""
    return [hashed(*key, turn) for turn in range(6)]


def permuted(numbers: Integers, size: int, *key: int) -> Integers:
    """Where a random permutation of 0 .. size - 1, fixed by the key, takes each of some numbers.

    A Feistel network over pairs of digits whose product of bases is just above `size`; what falls outside goes through
    it again (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    high = isqrt(size - 1) + 1
    low = ceil(size / high)
    moved, turns = np.array(numbers, np.int64), _turns(key)
    outside = np.arange(len(moved))
    while len(outside):
        left, right = np.divmod(moved[outside], low)
        for even, odd in zip(turns[::2], turns[1::2], strict=True):
            left = (left + (mixed(even ^ right.astype(np.uint64)) % np.uint64(high)).astype(np.int64)) % high
            right = (right + (mixed(odd ^ left.astype(np.uint64)) % np.uint64(low)).astype(np.int64)) % low
        moved[outside] = left * low + right
        outside = outside[moved[outside] >= size]
    return moved


class _Windows:
    """The windows of all episodes, numbered through.

    Args:
        actions: [E], number of actions of each episode.
        levels: what is cut around each window; the first says how many there are.
        seed: of the places of the other levels.
    """

    def __init__(self, actions: Integers, levels: Sequence[Level], seed: int) -> None:
        self.actions, self.levels, self.seed = actions, tuple(levels), seed
        longest = max(level.steps for level in levels)
        # Episodes too short for one of the levels hold no window.
        counts = np.where(actions >= longest, actions - self.levels[0].steps + 1, 0)
        self.ends = np.cumsum(counts)
        self.total = int(self.ends[-1])

    def rows(self, windows: Integers, mask: NDArray[np.bool_]) -> Rows:
        """The rows that take these windows."""
        episodes = np.searchsorted(self.ends, windows, side="right")
        before = np.where(episodes > 0, self.ends[episodes - 1], 0)
        first = windows - before
        starts, span = [first], self.levels[0].steps
        for number, level in enumerate(self.levels[1:], 1):
            # A longer window holds the whole of the first level's, a shorter one lies within it.
            least = np.maximum(0, first + min(0, span - level.steps))
            most = np.minimum(first + max(0, span - level.steps), self.actions[episodes] - level.steps)
            chance = hashed(self.seed, 2, number, windows)
            starts.append(least + (chance % (most - least + 1).astype(np.uint64)).astype(np.int64))
        return Rows(windows, episodes, np.stack(starts), mask)


class ShuffledWindows(_Windows):
    """Training: all windows in a new order, each once before any comes again, and on and on.

    The order is dealt out to the ranks row by row: their batches make up one global batch, the same for any number of
    ranks that it is shared by. With `block_shards` the windows are shuffled within blocks of so many shards, which come
    in a new order in each pass: what a cache must hold is then bounded.

    Args:
        actions: [E], number of actions of each episode.
        shards: [E], the shard of each episode, ascending.
        levels: what is cut around each window.
        batch_size: rows for each rank.
        seed: of order and places.
        block_shards: shards of a block; None for all.
        rank: which of the ranks this is.
        ranks: how many there are.
    """

    def __init__(
        self,
        actions: Integers,
        shards: Integers,
        levels: Sequence[Level],
        batch_size: int,
        seed: int,
        block_shards: int | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        super().__init__(actions, levels, seed)
        self.batch_size, self.rank, self.ranks = batch_size, rank, ranks
        last = np.flatnonzero(np.diff(shards, append=shards[-1] + 1))  # of each shard's episodes
        ends = self.ends[last]
        self._shard_starts, self._shard_counts = np.concatenate([[0], ends[:-1]]), np.diff(ends, prepend=0)
        self._block = len(ends) if block_shards is None else min(block_shards, len(ends))
        self._pass: tuple[int, Integers, Integers] | None = None
        self._planned: tuple[int, Rows] | None = None

    def __call__(self, batch: int) -> Rows:
        """The rows of the batch of this number."""
        group, place = divmod(batch, _AT_ONCE)
        if self._planned is None or self._planned[0] != group:
            self._planned = group, self._group(group)
        own = slice(place * self.batch_size, (place + 1) * self.batch_size)
        windows, episodes, starts, mask = self._planned[1]
        return Rows(windows[own].copy(), episodes[own].copy(), starts[:, own].copy(), mask[own].copy())

    def block_of(self, batch: int) -> tuple[int, int]:
        """The pass and the block that the batch of this number begins in."""
        number, card = divmod(batch * self.ranks * self.batch_size, self.total)
        _, ends = self._order(number)
        return number, int(np.searchsorted(ends[self._block - 1 :: self._block], card, side="right"))

    def following(self, block: tuple[int, int]) -> tuple[int, int]:
        """The block after one, maybe in the next pass."""
        number, place = block
        return (number, place + 1) if (place + 1) * self._block < len(self._shard_counts) else (number + 1, 0)

    def shards_of(self, block: tuple[int, int]) -> list[int]:
        """The shards of a block of a pass."""
        shards, _ = self._order(block[0])
        found: list[int] = shards[block[1] * self._block : (block[1] + 1) * self._block].tolist()
        return found

    def _group(self, group: int) -> Rows:
        """The rows of some batches in a row: NumPy's calls cost more than what they do for a single one."""
        batches = group * _AT_ONCE + np.arange(_AT_ONCE)[:, None]
        numbers = (batches * self.ranks + self.rank) * self.batch_size + np.arange(self.batch_size)
        passes, cards = np.divmod(numbers.ravel(), self.total)
        windows = np.empty_like(cards)
        for number in np.unique(passes).tolist():
            now = passes == number
            windows[now] = self._dealt(number, cards[now])
        return self.rows(windows, np.ones(len(windows), bool))

    def _dealt(self, number: int, cards: Integers) -> Integers:
        """The windows that come at these places of a pass."""
        shards, ends = self._order(number)
        found = np.empty_like(cards)
        blocks = np.searchsorted(ends[self._block - 1 :: self._block], cards, side="right")
        for block in np.unique(blocks).tolist():
            now = blocks == block
            first, last = block * self._block, min((block + 1) * self._block, len(shards))
            before = int(ends[first - 1]) if first else 0
            places = permuted(cards[now] - before, int(ends[last - 1]) - before, self.seed, 1, number, block) + before
            place = np.searchsorted(ends, places, side="right")
            within = places - np.where(place > 0, ends[place - 1], 0)
            found[now] = self._shard_starts[shards[place]] + within
        return found

    def _order(self, number: int) -> tuple[Integers, Integers]:
        """The order of the shards in a pass, and the number of windows up to the end of each."""
        if self._pass is None or self._pass[0] != number:
            shards = np.argsort(hashed(self.seed, 0, number, np.arange(len(self._shard_counts))), kind="stable")
            self._pass = number, shards, np.cumsum(self._shard_counts[shards])
        return self._pass[1:]


class EveryWindow(_Windows):
    """Validation: windows at fixed places of every episode, each exactly once over all ranks.

    Every rank gets the same number of batches of the same size; rows that fill up the last ones are masked out.

    Args:
        actions: [E], number of actions of each episode.
        levels: what is cut around each window.
        batch_size: rows for each rank.
        windows_per_episode: evenly spread over each episode, as far as it has so many; None for all.
        rank: which of the ranks this is.
        ranks: how many there are.
    """

    def __init__(
        self,
        actions: Integers,
        levels: Sequence[Level],
        batch_size: int,
        windows_per_episode: int | None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        super().__init__(actions, levels, seed=0)
        self.batch_size, self.rank, self.ranks = batch_size, rank, ranks
        counts = np.diff(self.ends, prepend=0)
        self._taken = counts if windows_per_episode is None else np.minimum(counts, windows_per_episode)
        self._counts, self._taken_ends = counts, np.cumsum(self._taken)

    def __len__(self) -> int:
        return ceil(int(self._taken_ends[-1]) / (self.batch_size * self.ranks))

    def __call__(self, batch: int) -> Rows:
        """The rows of the batch of this number; those that pad the last one are masked."""
        numbers = (batch * self.ranks + self.rank) * self.batch_size + np.arange(self.batch_size)
        mask = numbers < self._taken_ends[-1]
        kept = np.minimum(numbers, self._taken_ends[-1] - 1)
        episodes = np.searchsorted(self._taken_ends, kept, side="right")
        taken, count = self._taken[episodes], self._counts[episodes]
        place = kept - (self._taken_ends[episodes] - taken)
        return self.rows(self.ends[episodes] - count + (2 * place + 1) * count // (2 * taken), mask)
