"""The data module that all training stages share.

Legend: B batch, T frames of a window, C H W image, A action, P body, N truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import Tensor

from data_pipelines.schema import Manifest
from data_pipelines.shards import EpisodeFolder
from data_pipelines.stream import Batches, EveryEpisode, Level, ShuffledEpisodes, WindowBatches


class EpisodeData(L.LightningDataModule):
    """Windows of collected episodes: `root/train` for training, `root/val` (other layouts) for validation.

    A batch is a tuple with one `Window` for each level, cut from the same episodes. Training takes the episodes in a
    new random order each time, for exactly `steps_per_epoch` batches in an epoch; validation takes each episode exactly
    once over all ranks, at fixed places, and masks what fills up the last batch. Images stay uint8.

    Args:
        root: folder of the data set.
        levels: `{length, stride}` of each level's windows: frames, and world steps between them.
        batch_size: windows of each level in a batch, for each rank.
        steps_per_epoch: training batches in an epoch, for each rank.
        workers: processes that read; 0 reads in the training process, which is fastest for small frames.
        seed: of the order and the windows.
        val_windows_per_episode: windows that validation takes from each episode.
        observation_shape: C, H, W that the rest of the configuration expects, or None to take what is there.

    Raises:
        ValueError: if a number is impossible; in `setup`, if data are missing, damaged or don't fit.
    """

    def __init__(
        self,
        root: str,
        levels: Sequence[Mapping[str, int]],
        batch_size: int = 128,
        steps_per_epoch: int = 500,
        workers: int = 0,
        seed: int = 0,
        val_windows_per_episode: int = 4,
        observation_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.root, self.seed = Path(root), seed
        self.levels = [Level(int(level["length"]), int(level["stride"])) for level in levels]
        if not self.levels or min(min(level.length - 1, level.stride) for level in self.levels) < 1:
            raise ValueError(
                f"levels={[level._asdict() for level in self.levels]}: "
                "give at least one, of length >= 2 and stride >= 1"
            )
        least = {"batch_size": 1, "steps_per_epoch": 1, "val_windows_per_episode": 1, "workers": 0}
        given = (batch_size, steps_per_epoch, val_windows_per_episode, workers)
        for (name, bound), value in zip(least.items(), given, strict=True):
            if value < bound:
                raise ValueError(f"{name}={value}: give at least {bound}")
        self.batch_size, self.steps_per_epoch, self.workers = batch_size, steps_per_epoch, workers
        self.val_windows_per_episode = val_windows_per_episode
        self.observation_shape = tuple(observation_shape) if observation_shape is not None else None
        self._batches: Batches | None = None
        self._state: dict[str, int] | None = None

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
        episodes = EpisodeFolder(self.root / split)
        manifest = episodes.manifest
        if self.observation_shape not in (None, manifest.observation_shape):
            raise ValueError(
                f"the episodes in {episodes.folder} have images {manifest.observation_shape} (channels, height, "
                f"width), the configuration expects {self.observation_shape}. Set the world's resolution to what was "
                "collected, or collect again into another folder"
            )
        for level in self.levels:
            if level.steps > manifest.shortest:
                raise ValueError(
                    f"a window of length {level.length} and stride {level.stride} spans {level.steps} steps, but an "
                    f"episode in {episodes.folder} has only {manifest.shortest}. Choose a shorter length or stride"
                )
        return episodes

    def _rank(self) -> tuple[int, int]:
        """The process's rank and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def train_dataloader(self) -> Batches:
        """`steps_per_epoch` training batches; each walk through them is the next epoch."""
        rank, ranks = self._rank()
        count = len(self.train_episodes)
        plan = ShuffledEpisodes(count, len(self.levels), self.batch_size, self.seed, rank, ranks)
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        windows = WindowBatches(self.train_episodes, plan, self.levels)
        self._batches = Batches(windows, self.steps_per_epoch, self.workers, epoch)
        if self._state is not None:
            self._batches.load_state_dict(self._state)
            self._state = None
        return self._batches

    def state_dict(self) -> dict[str, int]:
        """Where training is in the stream; goes into checkpoints."""
        return {} if self._batches is None else self._batches.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on there. Lightning hands a loader's state to the loader too late when its length was asked for before."""
        self._state = state_dict or None

    def val_dataloader(self) -> Batches:
        """Every validation episode, the same windows each time."""
        rank, ranks = self._rank()
        count = len(self.val_episodes)
        plan = EveryEpisode(count, len(self.levels), self.batch_size, self.val_windows_per_episode, rank, ranks)
        return Batches(WindowBatches(self.val_episodes, plan, self.levels), len(plan), self.workers, repeat=True)
