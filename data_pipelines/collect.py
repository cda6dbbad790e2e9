"""Collection: a world and a policy -> shards. This is the "agency" data stream: what is seen depends on actions.

Legend: B episodes (those of one shard, simulated at once), T actions, C H W image, A action, P body, K energies,
N truth, H actions of a plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from data_pipelines.encodings import check
from data_pipelines.pack import pack, shard_sizes
from data_pipelines.schema import ARRAYS, Episode, Manifest
from data_pipelines.shards import Packed, write_shard
from lightning_jepa.protocols import World

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
    """Who acts while data are collected, in B episodes at once.

    Attributes:
        name: what the data set calls it.
        goal: picture of what each episode is about, uint8 [B, C, H, W]; None for those without a goal.
        planned: what Mode-2 found at the observations shown last, [B, H * A], NaN in episodes where it did not plan;
            None for policies that never plan.
        weights: u, those of the intrinsic cost that it minimises, [B, K]; None without.
    """

    name: str
    goal: Tensor | None
    planned: Tensor | None
    weights: Tensor | None

    def reset(self, world: Any, layouts: Tensor, generator: Generator) -> Tensor:
        """Begin an episode in each of the layouts [B]: returns the states [B, ...] in which they start."""
        ...

    def act(self, observations: Tensor, body: Tensor) -> Tensor:
        """What is seen, uint8 [B, C, H, W], and felt, [B, P] -> actions [B, A]."""
        ...


class Energies(Protocol):
    """Intrinsic energies that need nothing but the body and actions (`lightning_jepa.cost.intrinsic`)."""

    @property
    def names(self) -> Sequence[str]:
        """Of the K energies."""
        ...

    def felt(self, body: Tensor, actions: Tensor) -> Tensor:
        """[..., P] and the actions [..., A] that led there -> [..., K]."""
        ...


class Collection:
    """Collects the splits of a data set: `root/train` in training layouts, `root/val` in held-out ones.

    Every shard is a function of (seed, split, shard number) alone: shards can be made by any number of processes in any
    order, and a collection that was killed goes on where it stopped with the same bytes as if it had not been. Asked
    for more episodes than there are, it adds the missing ones.

    Args:
        world: the simulator; it is reset to as many episodes as a shard holds.
        policy: who acts.
        root: folder of the data set.
        episodes: number of episodes for each split, "train" and "val".
        episodes_per_shard: episodes simulated at once and written to one tar file.
        seed: of layouts, starts and actions.
        workers: processes; 0 collects in this one.
        encoding: of the observations, see `encodings.py`.
        intrinsic: energies to record with each observation; None for none.

    Raises:
        ValueError: if a number is impossible, a split is unknown or the encoding can't hold the world's pictures.
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
        encoding: str = "raw",
        intrinsic: Energies | None = None,
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
        check(encoding, world.observation_shape[0])
        self.encoding, self.intrinsic = encoding, intrinsic
        self.world, self.policy, self.root = world, policy, Path(root)
        self.episodes = {str(split): int(count) for split, count in episodes.items()}
        self.episodes_per_shard, self.seed, self.workers = episodes_per_shard, seed, workers
        # Read before anything is simulated, when the objects hold nothing but their settings.
        parts = {"world": world, "layouts": world.layouts, "policy": policy}
        self._settings = {name: settings(part) for name, part in parts.items()}
        self._settings["energies"] = {"names": list(intrinsic.names) if intrinsic is not None else []}

    def run(self) -> dict[str, Manifest]:
        """Make all shards that are not there yet, then the manifests; returns one for each split.

        Raises:
            ValueError: if the folder can't be written, or holds a collection of another configuration.
        """
        return {split: self._run(split) for split in self.episodes}

    def _run(self, split: str) -> Manifest:
        return pack(
            self.root / split,
            partial(self.make_shard, split),
            shard_sizes(self.episodes[split], self.episodes_per_shard),
            self._configuration(split),
            split,
            self.encoding,
            body_names=self.world.body_names,
            energy_names=self.intrinsic.names if self.intrinsic is not None else (),
            truth_names=self.world.truth_names,
            workers=self.workers,
        )

    def _configuration(self, split: str) -> dict[str, Any]:
        numbers = {"seed": self.seed, "episodes_per_shard": self.episodes_per_shard}
        return {"split": split, "encoding": self.encoding, **numbers, **self._settings}

    def make_shard(self, split: str, number: int) -> Packed:
        """Simulate and write the shard of this number."""
        first = number * self.episodes_per_shard
        count = min(self.episodes_per_shard, self.episodes[split] - first)
        entropy = hashlib.sha256(f"{self.seed}/{split}/{number}".encode()).digest()
        generator = Generator().manual_seed(int.from_bytes(entropy[:7]))
        ids = self.world.layouts.ids(LAYOUTS[split])
        layouts = ids[torch.randint(len(ids), (count,), generator=generator)]
        batch = record(self.world, self.policy, layouts, generator, self.intrinsic)
        meta = {"world": self.world.name, "policy": self.policy.name, "seed": self.seed, "stream": "agency"}
        episodes = (
            (Episode(*(array[row] for array in batch)), {**meta, "layout": int(layouts[row])}) for row in range(count)
        )
        return write_shard(self.root / split, number, episodes, self.encoding)


def record(
    world: World, policy: CollectionPolicy, layouts: Tensor, generator: Generator, intrinsic: Energies | None = None
) -> Episode:
    """Let the policy act for one episode in each of the layouts [B]; the arrays have a leading axis of B."""
    b, steps = len(layouts), world.episode_steps
    observation = world.reset(layouts, policy.reset(world, layouts, generator))
    observations = np.empty((b, steps + 1, *observation.shape[1:]), np.uint8)
    observations[:, 0] = observation.cpu()
    bodies, truths, actions, plans = [world.body()], [world.truth()], [], []
    for t in range(steps):
        actions.append(policy.act(observation, bodies[-1]))
        plans.append(actions[-1][:, :0] if policy.planned is None else policy.planned)
        observation = world.step(actions[-1])
        observations[:, t + 1] = observation.cpu()
        bodies.append(world.body())
        truths.append(world.truth())
    action, body = torch.stack(actions, 1), torch.stack(bodies, 1)
    led = torch.cat([torch.zeros_like(action[:, :1]), action], 1)
    parts = {
        "actions": action,
        "body": body,
        "energies": body[..., :0] if intrinsic is None else intrinsic.felt(body, led),
        "truth": torch.stack(truths, 1),
        "plans": torch.stack(plans, 1),
        "goal": observation.new_empty(b, 1, 0) if policy.goal is None else policy.goal.flatten(1)[:, None],
        "weights": body.new_empty(b, 1, 0) if policy.weights is None else policy.weights[:, None],
    }
    arrays = {name: part.cpu().numpy().astype(ARRAYS[name]) for name, part in parts.items()}
    return Episode(observations=observations, **arrays)


def settings(thing: object) -> dict[str, Any]:
    """What tells two objects of the template apart: their class and the plain values they were built with."""
    plain = {name: value for name, value in vars(thing).items() if isinstance(value, (bool, int, float, str))}
    return {"class": f"{type(thing).__module__}.{type(thing).__qualname__}", **plain}
