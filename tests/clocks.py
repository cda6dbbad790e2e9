"""Episodes whose arrays all tell the episode's number and the time, for tests of the stream."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipelines.datamodule import EpisodeData
from data_pipelines.pack import pack
from data_pipelines.schema import Episode, Manifest
from data_pipelines.shards import Packed, write_shard
from lightning_jepa.types import Window

STEPS = 40
DENSE, COARSE = {"length": 5, "stride": 1}, {"length": 4, "stride": 6}
UNEVEN = [[STEPS] * 4, [STEPS, 30, 25, STEPS, 24], [STEPS, STEPS]]  # eleven episodes in three shards


def clock(number: int, steps: int = STEPS, shape: tuple[int, int, int] = (3, 4, 5)) -> Episode:
    """Pixels (number, t, ...), actions (number, t), body t, energies (-t, number), truth (number, t), plans t, goal and
    weights number.
    """
    time = np.arange(steps + 1)
    observations = np.zeros((steps + 1, *shape), np.uint8)
    observations[:, 0], observations[:, 1:] = number, time[:, None, None, None]
    both = np.stack([np.full(steps + 1, number), time], 1).astype(np.float32)
    return Episode(
        observations,
        actions=both[:-1].copy(),
        body=both[:, 1:].copy(),
        energies=-both[:, ::-1],
        truth=both,
        plans=both[:-1, 1:].copy(),
        goal=np.full((1, observations[0].size), number, np.uint8),
        weights=np.full((1, 1), number, np.float32),
    )


def make(folder: Path, shards: list[list[int]], encoding: str, shape: tuple[int, int, int], number: int) -> Packed:
    first = sum(len(shard) for shard in shards[:number])
    episodes = ((clock(first + i, steps, shape), {"clock": first + i}) for i, steps in enumerate(shards[number]))
    return write_shard(folder, number, episodes, encoding)


def write(
    root: Path,
    shards: list[list[int]],
    encoding: str = "raw",
    splits: Iterable[str] = ("train", "val"),
    shape: tuple[int, int, int] = (3, 4, 5),
) -> dict[str, Manifest]:
    """Folders of clocks, numbered through; `shards` lists the numbers of steps of each one's episodes."""
    return {
        split: pack(
            root / split,
            partial(make, root / split, shards, encoding, shape),
            [len(shard) for shard in shards],
            {"shards": shards, "encoding": encoding},
            split,
            encoding,
            body_names=("time",),
            energy_names=("backwards", "number"),
            truth_names=("number", "time"),
        )
        for split in splits
    }


def data(root: Path | str, **arguments: Any) -> EpisodeData:
    return EpisodeData(str(root), **{"levels": [DENSE, COARSE], "batch_size": 8, "steps_per_epoch": 5, **arguments})


def fingerprint(batches: Iterable[tuple[Window, ...]]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for window in batch:
            for tensor in window:
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def taken(batches: Iterable[tuple[Window, ...]]) -> list[tuple[int, int]]:
    """(episode, start) of the first level's windows that are not padding."""
    rows: list[tuple[int, int]] = []
    for window, *_ in batches:
        rows += [(int(n), int(t)) for n, t in window.truth[window.mask][:, 0]]
    return rows


def exactly(batch: tuple[Window, ...], levels: Iterable[dict[str, int]]) -> None:
    """Assert that all arrays of all levels tell the same episode and the times that they should."""
    number = batch[0].truth[:, :1, 0]
    for window, level in zip(batch, levels, strict=True):
        length, stride, time = level["length"], level["stride"], window.times
        assert window.observations.dtype == torch.uint8
        assert window.actions.shape[1:3] == (length - 1, stride)
        assert (time.diff(dim=1) == stride).all()
        assert torch.equal(window.observations[:, :, 1, 0, 0].long(), time)
        assert torch.equal(window.observations[:, :, 0, 0, 0].float(), number.expand(-1, length))
        assert torch.equal(window.actions[..., 1], (time[:, :-1, None] + torch.arange(stride)).float())
        assert (window.actions[..., 0] == number[..., None]).all()
        assert torch.equal(window.body[..., 0], time.float())
        assert torch.equal(window.energies[..., 0], -time.float())
        assert torch.equal(window.truth[..., 1], time.float())
        assert torch.equal(window.plans[..., 0], window.actions[..., 1])
        assert torch.equal(window.goal[:, :, 0, 0].float(), number.expand(-1, window.goal.shape[1]))
        assert torch.equal(window.weights, number)
        assert torch.equal(window.truth[..., 0], number.expand(-1, length))
