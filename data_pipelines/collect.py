"""Collection: a world and a policy -> shards. This is the "agency" data stream: what is seen depends on actions.

Legend: B episodes (those of one shard, simulated at once), T actions, C H W image, A action, N truth.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from math import ceil
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch import Generator, Tensor

from data_pipelines.schema import MANIFEST, Episode, Manifest, Shard, canonical, shard_from, write_atomically
from data_pipelines.shards import damage, write_shard
from lightning_jepa.protocols import World

JOURNAL = "unfinished.jsonl"
LAYOUTS = {"train": "train", "val": "held_out"}  # which layouts each split of the data may show


class LayoutSplits(Protocol):
    """Layouts that are split by construction."""

    def ids(self, split: str) -> Tensor:
        """Layout ids of "train" or "held_out"."""
        ...


class LaidOutWorld(World, Protocol):
    """A world whose layouts are numbered."""

    layouts: LayoutSplits


class CollectionPolicy(Protocol):
    """Who acts while data are collected, in B episodes at once."""

    name: str

    def reset(self, world: Any, layouts: Tensor, generator: Generator) -> Tensor:
        """Begin an episode in each of the layouts [B]: returns the states [B, ...] in which they start."""
        ...

    def act(self, observations: Tensor) -> Tensor:
        """Observations uint8 [B, C, H, W] -> actions [B, A]."""
        ...


class Collection:
    """Collects the splits of a data set: `root/train` in training layouts, `root/val` in held-out ones.

    Every shard is a function of (seed, split, shard number) alone: shards can be made by any number of processes in any
    order, and a collection that was killed goes on where it stopped with the same bytes as if it had not been.

    Args:
        world: the simulator; it is reset to as many episodes as a shard holds.
        policy: who acts.
        root: folder of the data set.
        episodes: number of episodes for each split, "train" and "val".
        episodes_per_shard: episodes simulated at once and written to one tar file.
        seed: of layouts, starts and actions.
        workers: processes; 0 collects in this one.

    Raises:
        ValueError: if a number is impossible or a split is unknown.
    """

    def __init__(
        self,
        world: LaidOutWorld,
        policy: CollectionPolicy,
        root: str,
        episodes: Mapping[str, int],
        episodes_per_shard: int = 100,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        unknown = set(episodes) - set(LAYOUTS)
        if unknown or not episodes or min(episodes.values()) < 1:
            raise ValueError(
                f"episodes={dict(episodes)}: give at least one episode for each of the splits {list(LAYOUTS)}"
            )
        if episodes_per_shard < 1 or workers < 0:
            raise ValueError(
                f"episodes_per_shard={episodes_per_shard}, workers={workers}: give at least 1 and at least 0"
            )
        self.world, self.policy, self.root = world, policy, Path(root)
        self.episodes = {str(split): int(count) for split, count in episodes.items()}
        self.episodes_per_shard, self.seed, self.workers = episodes_per_shard, seed, workers
        # Read before anything is simulated, when the objects hold nothing but their settings.
        self._settings = {"world": settings(world), "layouts": settings(world.layouts), "policy": settings(policy)}

    def run(self) -> dict[str, Manifest]:
        """Make all shards that are not there yet, then the manifests; returns one for each split.

        Raises:
            ValueError: if the folder can't be written, or holds a collection of another configuration.
        """
        return {split: self._run(split) for split in self.episodes}

    def _run(self, split: str) -> Manifest:
        folder = self.root / split
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError("no permission to write")
        except OSError as error:
            raise ValueError(
                f"cannot write episodes to {folder} ({error}). Choose another root for the collection"
            ) from error
        configuration = self._configuration(split)
        done = self._finished_shards(folder, configuration)
        count = ceil(self.episodes[split] / self.episodes_per_shard)
        missing = [index for index in range(count) if index not in done]
        if missing or not (folder / MANIFEST).is_file():
            journal = folder / JOURNAL
            lines = [canonical(configuration), *(canonical(asdict(shard)) for shard in done.values())]
            write_atomically(journal, "\n".join(lines) + "\n")
            (folder / MANIFEST).unlink(missing_ok=True)
            with open(journal, "a", encoding="utf-8") as file, _progress() as progress:
                already = sum(shard.episodes for shard in done.values())
                total = self.episodes[split]
                bar = progress.add_task(f"collecting {self.world.name}/{split}", total=total, completed=already)
                for index, shard in self._make_all(split, missing):
                    done[index] = shard
                    file.write(canonical(asdict(shard)) + "\n")
                    file.flush()
                    progress.advance(bar, shard.episodes)
            self._manifest(split, configuration, done).write(folder)
            journal.unlink()
        return Manifest.load(folder)

    def _configuration(self, split: str) -> dict[str, Any]:
        numbers = {"seed": self.seed, "episodes": self.episodes[split], "episodes_per_shard": self.episodes_per_shard}
        plain: dict[str, Any] = json.loads(canonical({"split": split, **numbers, **self._settings}))
        return plain

    def _manifest(self, split: str, configuration: dict[str, Any], done: dict[int, Shard]) -> Manifest:
        return Manifest(
            split=split,
            configuration=configuration,
            observation_shape=self.world.observation_shape,
            action_size=self.world.action_size,
            body_size=0,
            truth_names=self.world.truth_names,
            shards=tuple(done[index] for index in sorted(done)),
        )

    def _finished_shards(self, folder: Path, configuration: dict[str, Any]) -> dict[int, Shard]:
        """Shards of an earlier, perhaps killed run of the same collection that are whole, by number."""
        if (folder / MANIFEST).is_file():
            manifest = Manifest.load(folder)
            found, shards = manifest.configuration, list(manifest.shards)
        elif (folder / JOURNAL).is_file():
            # A line without its end was being written when the run was killed.
            first, *rest = (folder / JOURNAL).read_text(encoding="utf-8").split("\n")[:-1]
            found, shards = json.loads(first), [shard_from(json.loads(line)) for line in rest]
        elif any(folder.glob("*.tar")):
            raise ValueError(f"{folder} holds tar files but no manifest.json. Choose another root for the collection")
        else:
            return {}
        if found != configuration:
            raise ValueError(
                f"{folder} holds another collection: {'; '.join(_differences(found, configuration))}. "
                f"Choose another root for the collection, or delete {folder}"
            )
        return {int(Path(s.name).stem): s for s in shards if damage(folder, s, thorough=True) is None}

    def _make_all(self, split: str, indices: list[int]) -> Iterator[tuple[int, Shard]]:
        """Make shards here or in worker processes, in any order."""
        if self.workers == 0 or len(indices) < 2:
            for index in indices:
                yield index, self.make_shard(split, index)
            return
        # Forking a process whose libraries run threads can hang, so workers start afresh.
        context = get_context("spawn")
        with ProcessPoolExecutor(self.workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            futures = {pool.submit(self.make_shard, split, index): index for index in indices}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def make_shard(self, split: str, index: int) -> Shard:
        """Simulate and write the shard of this number."""
        first = index * self.episodes_per_shard
        count = min(self.episodes_per_shard, self.episodes[split] - first)
        keys = [f"s{index:06d}-e{number:06d}" for number in range(count)]
        entropy = hashlib.sha256(f"{self.seed}/{split}/{index}".encode()).digest()
        generator = Generator().manual_seed(int.from_bytes(entropy[:7]))
        ids = self.world.layouts.ids(LAYOUTS[split])
        layouts = ids[torch.randint(len(ids), (count,), generator=generator)]
        batch = record(self.world, self.policy, layouts, generator)
        meta = {"world": self.world.name, "policy": self.policy.name, "seed": self.seed, "stream": "agency"}
        samples = (
            (key, Episode(*(array[row] for array in batch)), {**meta, "layout": int(layouts[row])})
            for row, key in enumerate(keys)
        )
        return write_shard(self.root / split / f"{index:06d}.tar", samples)


def record(world: World, policy: CollectionPolicy, layouts: Tensor, generator: Generator) -> Episode:
    """Let the policy act for one episode in each of the layouts [B]; the arrays have a leading axis of B."""
    b, steps = len(layouts), world.episode_steps
    observation = world.reset(layouts, policy.reset(world, layouts, generator))
    observations = np.empty((b, steps + 1, *observation.shape[1:]), np.uint8)
    actions = np.empty((b, steps, world.action_size), np.float32)
    truth = np.empty((b, steps + 1, len(world.truth_names)), np.float32)
    observations[:, 0], truth[:, 0] = observation.cpu(), world.truth().cpu()
    for t in range(steps):
        action = policy.act(observation)
        observation = world.step(action)
        actions[:, t], observations[:, t + 1], truth[:, t + 1] = action.cpu(), observation.cpu(), world.truth().cpu()
    return Episode(observations, actions, np.empty((b, steps + 1, 0), np.float32), truth)


def settings(thing: object) -> dict[str, Any]:
    """What tells two objects of the template apart: their class and the plain values they were built with."""
    plain = {name: value for name, value in vars(thing).items() if isinstance(value, (bool, int, float, str))}
    return {"class": f"{type(thing).__module__}.{type(thing).__qualname__}", **plain}


def _differences(found: Mapping[str, Any], asked: Mapping[str, Any], path: str = "") -> list[str]:
    lines: list[str] = []
    for name in sorted({*found, *asked}):
        there, here = found.get(name), asked.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            lines += _differences(there, here, f"{path}{name}.")
        elif there != here:
            lines.append(f"{path}{name} is {there} there and {here} here")
    return lines


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Episodes per second."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.0f} episodes/s" if speed else "")


def _progress() -> Progress:
    text = TextColumn("{task.description}")
    return Progress(text, BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
