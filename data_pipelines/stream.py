"""Shards -> batches of windows, each batch a function of its number alone.

A plan says which episodes a batch takes and where in them its windows lie; `WindowBatches` cuts them; `Batches` walks
through the numbers of one epoch after the other. As nothing else enters, the order of batches is the same for any
number of worker processes.
Legend: B batch, L levels, T frames of a window, C H W image, A action, P body, N truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from data_pipelines.schema import Episode
from data_pipelines.shards import EpisodeFolder
from lightning_jepa.types import Window


class Level(NamedTuple):
    """Windows of `length` frames, `stride` world steps apart."""

    length: int
    stride: int

    @property
    def steps(self) -> int:
        """World steps from the first to the last frame."""
        return (self.length - 1) * self.stride


class Rows(NamedTuple):
    """Which windows make up a batch."""

    episodes: NDArray[np.int64]  # [B]
    places: NDArray[np.float64]  # [B, L] in [0, 1): where each window starts, as a share of the starts there are
    mask: NDArray[np.bool_]  # [B]: False for padding


class Plan(Protocol):
    """The windows of each batch of one rank."""

    def __call__(self, batch: int) -> Rows:
        """The rows of the batch of this number, counted over all epochs."""
        ...


class ShuffledEpisodes:
    """Training: all episodes in a new order again and again, the windows anywhere in them.

    The order is dealt out to the ranks row by row, so that the ranks' batches make up one global batch of different
    episodes, whatever the number of ranks.

    Args:
        episodes: how many there are.
        levels: number of windows cut from each.
        batch_size: rows for each rank.
        seed: of order and places.
        rank: which of the ranks this is.
        ranks: how many there are.
    """

    def __init__(self, episodes: int, levels: int, batch_size: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        self.episodes, self.levels, self.batch_size, self.seed = episodes, levels, batch_size, seed
        self.rank, self.ranks = rank, ranks
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __call__(self, batch: int) -> Rows:
        """The rows of the batch of this number."""
        size = self.batch_size * self.ranks
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        passes, cards = np.divmod(np.arange(batch * size, (batch + 1) * size)[mine], self.episodes)
        chosen = np.empty(self.batch_size, np.int64)
        for number in np.unique(passes):
            now = passes == number
            chosen[now] = self._pass(int(number))[cards[now]]
        places = np.random.default_rng((self.seed, 1, batch)).random((size, self.levels))[mine]
        return Rows(chosen, places, np.ones(self.batch_size, bool))

    def _pass(self, number: int) -> NDArray[np.int64]:
        """The order of episodes in a pass over all of them."""
        if self._order is None or self._order[0] != number:
            self._order = number, np.random.default_rng((self.seed, 0, number)).permutation(self.episodes)
        return self._order[1]


class EveryEpisode:
    """Validation: windows at fixed places of every episode, each exactly once over all ranks.

    Every rank gets the same number of batches of the same size; rows that fill up the last ones are masked out.

    Args:
        episodes: how many there are.
        levels: number of windows cut at each place.
        batch_size: rows for each rank.
        windows_per_episode: places in each episode, evenly spread.
        rank: which of the ranks this is.
        ranks: how many there are.
    """

    def __init__(
        self, episodes: int, levels: int, batch_size: int, windows_per_episode: int, rank: int = 0, ranks: int = 1
    ) -> None:
        self.rows = episodes * windows_per_episode
        self.levels, self.batch_size, self.windows_per_episode = levels, batch_size, windows_per_episode
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        return ceil(self.rows / (self.batch_size * self.ranks))

    def __call__(self, batch: int) -> Rows:
        """The rows of the batch of this number; those that pad the last one are masked."""
        numbers = (batch * self.ranks + self.rank) * self.batch_size + np.arange(self.batch_size)
        episodes, place = np.divmod(np.minimum(numbers, self.rows - 1), self.windows_per_episode)
        places = np.repeat((place[:, None] + 0.5) / self.windows_per_episode, self.levels, 1)
        return Rows(episodes, places, numbers < self.rows)


class WindowBatches(Dataset[tuple[Window, ...]]):
    """Cuts the windows that a plan asks for: item n is batch n, one `Window` for each level.

    Args:
        episodes: where they are read.
        plan: which to take.
        levels: what to cut.
    """

    def __init__(self, episodes: EpisodeFolder, plan: Plan, levels: Sequence[Level]) -> None:
        self.episodes, self.plan, self.levels = episodes, plan, tuple(levels)

    def __getitem__(self, batch: int) -> tuple[Window, ...]:
        rows = self.plan(batch)
        episodes = [self.episodes[index] for index in rows.episodes.tolist()]
        mask = torch.from_numpy(rows.mask)
        return tuple(
            self._cut(episodes, level, places, mask) for level, places in zip(self.levels, rows.places.T, strict=True)
        )

    def _cut(self, episodes: list[Episode], level: Level, places: NDArray[np.float64], mask: torch.Tensor) -> Window:
        manifest, (length, stride) = self.episodes.manifest, level
        lead = (len(episodes), length)
        window = Window(
            observations=torch.empty((*lead, *manifest.observation_shape), dtype=torch.uint8),
            actions=torch.empty((len(episodes), length - 1, stride, manifest.action_size)),
            body=torch.empty((*lead, manifest.body_size)),
            truth=torch.empty((*lead, len(manifest.truth_names))),
            mask=mask,
        )
        # Rows are copied through NumPy, whose small assignments cost a fraction of PyTorch's.
        observations, actions, body, truth = (tensor.numpy() for tensor in window[:4])
        for row, (episode, place) in enumerate(zip(episodes, places.tolist(), strict=True)):
            start = int(place * (len(episode.actions) - level.steps + 1))
            last = start + level.steps
            frames = slice(start, last + 1, stride)
            observations[row] = episode.observations[frames]
            actions[row] = episode.actions[start:last].reshape(actions.shape[1:])
            body[row] = episode.body[frames]
            truth[row] = episode.truth[frames]
        return window


class _Numbers(Sampler[int]):
    """The numbers of the batches of one walk."""

    def __init__(self) -> None:
        self.numbers = range(0)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)


class Batches:
    """A sized stream of batches: exactly `steps` in an epoch, for any number of workers; each walk is the next epoch.

    It is not itself a DataLoader, so that Lightning leaves it as it is: rank and number of ranks are in the plan. Its
    state is the number of the next batch; a walk that is taken up again goes on there, to the end of its epoch.

    Args:
        windows: batches by number.
        steps: batches in an epoch.
        workers: processes that cut windows; 0 cuts them in this one, which is best for small frames.
        epoch: the one to begin with.
        repeat: stay with this epoch's batches.
    """

    def __init__(self, windows: WindowBatches, steps: int, workers: int, epoch: int = 0, repeat: bool = False) -> None:
        self.steps, self.repeat = steps, repeat
        self.start = self.next = epoch * steps  # where the next walk starts, and the batch that follows the last given
        self._numbers = _Numbers()
        self._loader = DataLoader(
            windows,
            batch_size=None,  # items are whole batches already
            sampler=self._numbers,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Window, ...]]:
        # An epoch counts when its first batch is asked for: Lightning and PyTorch also make iterators they don't use.
        end = (self.start // self.steps + 1) * self.steps
        self.next, self._numbers.numbers = self.start, range(self.start, end)
        if not self.repeat:
            self.start = end
        for batch in self._loader:
            self.next += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """{"next": number of the next batch}, the same on every rank."""
        return {"next": self.next}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Start the next walk there."""
        self.start = self.next = state["next"]
