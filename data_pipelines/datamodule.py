"""The data module that all training stages share.

Legend: B batch, C H W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from data_pipelines.ahead import Ahead
from data_pipelines.episodes import EpisodeFolder
from data_pipelines.plan import EveryWindow, Level, ShuffledWindows
from data_pipelines.schema import Manifest
from data_pipelines.store import Store
from data_pipelines.stream import Batches
from data_pipelines.windows import WindowBatches


class EpisodeData(L.LightningDataModule):
    """Windows of episodes: `root/train` for training, `root/val` (other layouts) for validation.

    A batch is a tuple with one `Window` for each level, cut around the same moment of the same episode. Training takes
    every window once before any comes again, in a new order each time; validation takes each of its windows exactly
    once over all ranks, and masks what fills up the last batch. Images stay uint8.

    Args:
        root: where the data set lies: a folder or what `Store` opens.
        levels: `{length, stride}` of each level's windows: frames, and world steps between them.
        store: opens the root; None opens local folders, but not of zstd shards.
        batch_size: windows of each level in a batch, for each rank.
        steps_per_epoch: training batches in an epoch, for each rank; None for as many as take all windows once.
        workers: processes that read; 0 reads in the training process, which is fastest for small frames.
        seed: of the order and the windows.
        val_windows_per_episode: windows that validation takes from each episode; None for all.
        observation_shape: C, H, W that the rest of the configuration expects, or None to take what is there.
        block_shards: shards among which windows are shuffled; None for all. For stores whose shards are fetched.
        verify: "content" compares an episode's hashes when it is first read, "size" only the shards' sizes.
        on_damage: "raise", or "skip": training takes another window instead of a damaged one, the same at each resume.
        skip_limit: share of an epoch's rows that may be skipped.
        short_episodes: "raise" if an episode is too short for a level, or "drop" it.
        start_method: of the workers: fork, spawn or forkserver; None for the platform's.

    Raises:
        ValueError: if a number or a choice is impossible; in `setup`, if data are missing, damaged or don't fit.
    """

    def __init__(
        self,
        root: str,
        levels: Sequence[Mapping[str, int]],
        store: Store | None = None,
        batch_size: int = 128,
        steps_per_epoch: int | None = 500,
        workers: int = 0,
        seed: int = 0,
        val_windows_per_episode: int | None = 4,
        observation_shape: Sequence[int] | None = None,
        block_shards: int | None = None,
        verify: str = "content",
        on_damage: str = "raise",
        skip_limit: float = 0.01,
        short_episodes: str = "raise",
        start_method: str | None = None,
    ) -> None:
        super().__init__()
        self.root, self.seed, self.store = str(root), seed, store
        self.levels = [Level(int(level["length"]), int(level["stride"])) for level in levels]
        if not self.levels or min(min(level.length, level.stride) for level in self.levels) < 1:
            raise ValueError(
                f"levels={[level._asdict() for level in self.levels]}: "
                "give at least one, of length >= 1 and stride >= 1"
            )
        least = {"batch_size": 1, "steps_per_epoch": 1, "val_windows_per_episode": 1, "workers": 0, "block_shards": 1}
        given = (batch_size, steps_per_epoch, val_windows_per_episode, workers, block_shards)
        for (name, bound), value in zip(least.items(), given, strict=True):
            if value is not None and value < bound:
                raise ValueError(f"{name}={value}: give at least {bound}")
        for name, choice, options in (
            ("on_damage", on_damage, ("raise", "skip")),
            ("short_episodes", short_episodes, ("raise", "drop")),
        ):
            if choice not in options:
                raise ValueError(f"{name}={choice!r}: choose one of {list(options)}")
        self.batch_size, self.steps_per_epoch, self.workers = batch_size, steps_per_epoch, workers
        self.val_windows_per_episode, self.block_shards = val_windows_per_episode, block_shards
        self.observation_shape = tuple(observation_shape) if observation_shape is not None else None
        self.verify, self.on_damage, self.skip_limit = verify, on_damage, skip_limit
        self.short_episodes, self.start_method = short_episodes, start_method
        self.stream: Batches | None = None
        self._validation: Batches | None = None
        self._state: dict[str, Any] = {}

    @cached_property
    def train_episodes(self) -> EpisodeFolder:
        """The training episodes."""
        return self._checked("train")

    @cached_property
    def val_episodes(self) -> EpisodeFolder:
        """The validation episodes."""
        return self._checked("val")

    @property
    def manifest(self) -> Manifest:
        """What the training data are; its digest is their lineage."""
        return self.train_episodes.manifest

    @property
    def digests(self) -> dict[str, str]:
        """What names the content of each split."""
        return {"train": self.manifest.digest, "val": self.val_episodes.manifest.digest}

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [C] of the training pixels / 255; 1 for a channel that never changes."""
        mean, std = self.manifest.statistics()
        return torch.tensor(mean).float(), torch.tensor(np.where(std > 0, std, 1)).float()

    def setup(self, stage: str) -> None:
        """Find out now, not in the middle of a run, whether all data are there.

        Raises:
            ValueError: if a folder, manifest or shard is missing or damaged, or does not fit the configuration.
        """
        if stage == "fit":
            _ = self.train_episodes
        _ = self.val_episodes

    def _checked(self, split: str) -> EpisodeFolder:
        store = self.store or Store(cache="")
        tolerant = self.on_damage == "skip" and split == "train"
        cache = None if self.store is None else self.store.cache
        episodes = EpisodeFolder(store.open(self.root, split), cache, self.verify, tolerant)
        manifest = episodes.manifest
        if self.observation_shape not in (None, manifest.observation_shape):
            raise ValueError(
                f"the episodes in {episodes.location} have images {manifest.observation_shape} (channels, height, "
                f"width), the configuration expects {self.observation_shape}. Set the world's resolution to what was "
                "collected, or collect again into another folder"
            )
        for level in self.levels:
            enough = (episodes.actions >= level.steps).any() if self.short_episodes == "drop" else False
            if level.steps > manifest.shortest and not enough:
                raise ValueError(
                    f"a window of length {level.length} and stride {level.stride} spans {level.steps} steps, but an "
                    f"episode in {episodes.location} has only {manifest.shortest}. Choose a shorter length or stride, "
                    f"collect episodes of at least {level.steps} steps (world.episode_steps), or leave short ones out "
                    "with data.short_episodes=drop"
                )
        return episodes

    def _rank(self) -> tuple[int, int]:
        """The process's rank and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def train_dataloader(self) -> Batches:
        """`steps_per_epoch` training batches; each walk through them is the next epoch."""
        rank, ranks = self._rank()
        episodes = self.train_episodes
        plan = ShuffledWindows(
            episodes.actions,
            episodes.shard_of,
            self.levels,
            self.batch_size,
            self.seed,
            self.block_shards,
            rank,
            ranks,
        )
        steps = self.steps_per_epoch or plan.total // (self.batch_size * ranks)
        if steps == 0:
            raise ValueError(
                f"{self.root} holds {plan.total} training windows, less than one batch of {self.batch_size} on {ranks} "
                "ranks. Give a smaller data.batch_size or a number of data.steps_per_epoch"
            )
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        start = self._resumed(ranks) if self._state else epoch * steps
        self._state = {}
        windows = WindowBatches(episodes, plan, self.levels, self.on_damage == "skip")
        self.stream = Batches(
            windows,
            steps,
            self.workers,
            start,
            skip_limit=self.skip_limit,
            start_method=self.start_method,
            ahead=Ahead(episodes, plan) if episodes.fetched else None,
        )
        return self.stream

    def val_dataloader(self) -> Batches:
        """Every validation window, the same ones each time. Damage is never skipped."""
        rank, ranks = self._rank()
        episodes = self.val_episodes
        plan = EveryWindow(episodes.actions, self.levels, self.batch_size, self.val_windows_per_episode, rank, ranks)
        windows = WindowBatches(episodes, plan, self.levels)
        self._validation = Batches(windows, len(plan), self.workers, repeat=True, start_method=self.start_method)
        return self._validation

    def teardown(self, stage: str) -> None:
        """End the processes that read."""
        for batches in (self.stream, self._validation):
            if batches is not None:
                batches.close()

    def state_dict(self) -> dict[str, Any]:
        """Where training is in the stream, and in which one; the same on every rank. Goes into checkpoints.

        It is here and not in the loader, whose state Lightning restores too late when its length was asked for before.
        """
        if self.stream is None:
            return {}
        return {**self._stream(self._rank()[1]), "next": self._position(self.stream)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on there."""
        self._state = dict(state_dict)

    def _stream(self, ranks: int) -> dict[str, Any]:
        """What decides which windows a batch takes."""
        return {
            "data": self.manifest.digest,
            "seed": self.seed,
            "global_batch": self.batch_size * ranks,
            "block_shards": self.block_shards,
            "levels": [list(level) for level in self.levels],
        }

    def _resumed(self, ranks: int) -> int:
        """The batch to go on with, if the stream is the one that the checkpoint was in."""
        for name, here in self._stream(ranks).items():
            if self._state[name] != here:
                raise ValueError(
                    f"the checkpoint was in another stream: its {name} was {self._state[name]}, here it is {here}. "
                    "Resume with the same data, seed, levels and batch_size x ranks, or start anew from its weights "
                    "with init_from"
                )
        found: int = self._state["next"]
        return found

    def _position(self, batches: Batches) -> int:
        """The batch that a resumed run has to begin with."""
        if self.trainer is None:
            return batches.next
        # A batch that was handed out and whose step did not end, because of an exception, comes again.
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        position = batches.next - (progress.ready - progress.processed)
        # With limit_train_batches, what is left of the epoch is not taken.
        done = position % batches.steps
        if done and done >= self.trainer.num_training_batches:
            position += batches.steps - done
        return position
