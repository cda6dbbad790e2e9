"""What an episode on disk holds, and the manifest that describes a folder of shards.

Legend: T actions, so T + 1 observations; C H W image, A action, P body, K energies, N truth, H actions of a plan.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

SCHEMA_VERSION = 3
MANIFEST = "manifest.json"
Count = TypeVar("Count", int, NDArray[np.int64])
ARRAYS = {
    "observations": "uint8",
    "actions": "float32",
    "body": "float32",
    "energies": "float32",
    "truth": "float32",
    "plans": "float32",
    "goal": "uint8",
    "weights": "float32",
}


class Episode(NamedTuple):
    """One sample of a shard. `actions[t]` leads from `observations[t]` to `observations[t + 1]`.

    An axis of width 0 says that there is nothing of the kind; see `episode_of`.
    """

    observations: NDArray[np.uint8]  # [T + 1, C, H, W]
    actions: NDArray[np.float32]  # [T, A]; A is 0 in passive observation
    body: NDArray[np.float32]  # [T + 1, P]: interoception
    energies: NDArray[np.float32]  # [T + 1, K]: intrinsic energies IC_k of what was observed
    truth: NDArray[np.float32]  # [T + 1, N]: exact simulator state, for probes alone, never for training
    plans: NDArray[np.float32]  # [T, H * A]: what Mode-2 found at observation t; NaN where it did not plan
    goal: NDArray[np.uint8]  # [1, C * H * W]: the picture of the goal
    weights: NDArray[np.float32]  # [1, K]: those of the intrinsic cost that was minimised


def rows_of(array: str, actions: Count) -> Count:
    """How many rows an array has in an episode of so many actions."""
    if array in ("goal", "weights"):
        return actions * 0 + 1
    return actions if array in ("actions", "plans") else actions + 1


def episode_of(observations: NDArray[np.uint8], **given: NDArray[Any]) -> Episode:
    """An episode of the arrays that there are; the others have an axis of width 0.

    Args:
        observations: uint8 [T + 1, C, H, W].
        given: some of the other `ARRAYS`, of their types.
    """
    steps = len(observations) - 1
    nothing = {name: np.empty((rows_of(name, steps), 0), dtype) for name, dtype in ARRAYS.items()}
    return Episode(**{**nothing, **given, "observations": observations})


@dataclass(frozen=True)
class Shard:
    """What is known of one tar file: enough to recognise damage, and its share of the pixel statistics."""

    name: str
    bytes: int
    sha256: str
    episodes: int
    frames: int
    shortest: int  # least number of actions in one of its episodes
    pixel_sums: tuple[int, ...]  # [C]: sums of uint8 pixels, exact
    pixel_square_sums: tuple[int, ...]  # [C]


@dataclass(frozen=True)
class Manifest:
    """`manifest.json` beside the shards of one split; written last, so a folder that has one is complete."""

    split: str
    configuration: dict[str, Any]  # how the episodes came to be
    observation_shape: tuple[int, int, int]  # C, H, W
    action_size: int
    body_names: tuple[str, ...]
    energy_names: tuple[str, ...]
    truth_names: tuple[str, ...]
    plan_size: int  # numbers in a plan, H * A; 0 where nothing was planned
    has_goal: bool
    weights_size: int  # K where weights of the intrinsic cost are kept, else 0
    encoding: str  # of the observations
    shards: tuple[Shard, ...]
    index_sha256: str  # of the index file beside it
    schema_version: int = SCHEMA_VERSION

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return sum(shard.episodes for shard in self.shards)

    @property
    def frames(self) -> int:
        """Number of observations."""
        return sum(shard.frames for shard in self.shards)

    @property
    def transitions(self) -> int:
        """Number of pairs of successive observations."""
        return self.frames - self.episodes

    @property
    def shortest(self) -> int:
        """Number of actions in the shortest episode."""
        return min(shard.shortest for shard in self.shards)

    def statistics(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each channel, pixels / 255: two arrays [C]."""
        _, height, width = self.observation_shape
        count = self.frames * height * width
        mean = np.sum([shard.pixel_sums for shard in self.shards], 0) / (255 * count)
        square = np.sum([shard.pixel_square_sums for shard in self.shards], 0) / (255**2 * count)
        return mean, np.sqrt(np.maximum(square - mean**2, 0))

    @property
    def widths(self) -> dict[str, int]:
        """Numbers in a row of each array: its size without the axis of time."""
        channels, height, width = self.observation_shape
        picture = channels * height * width
        return {
            "observations": picture,
            "actions": self.action_size,
            "body": len(self.body_names),
            "energies": len(self.energy_names),
            "truth": len(self.truth_names),
            "plans": self.plan_size,
            "goal": picture * self.has_goal,
            "weights": self.weights_size,
        }

    @property
    def digest(self) -> str:
        """sha256 of the manifest as canonical JSON; since it holds every shard's hash, it names the data set."""
        return hashlib.sha256(canonical(asdict(self)).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write `manifest.json` in one step: it is either there and whole, or not there."""
        mean, std = self.statistics()
        content = {**asdict(self), "mean": mean.tolist(), "std": std.tolist(), "digest": self.digest}
        write_atomically(folder / MANIFEST, (json.dumps(content, indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `manifest.json` of a local folder.

        Raises:
            ValueError: if it is missing, broken, or of another schema version.
        """
        path = folder / MANIFEST
        if not path.is_file():
            state = (
                "has no manifest.json: the collection was interrupted or never ran" if folder.is_dir() else "is missing"
            )
            raise ValueError(
                f"the folder of episodes {folder} {state}. Run the collection (again): it goes on where it stopped"
            )
        return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, text: bytes, where: str) -> Manifest:
        """The manifest that a file holds; `where` it was read, for messages.

        Raises:
            ValueError: if it is broken, or of another schema version.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{where} is not JSON ({error}). Delete it and run the collection again") from error
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"{where} has schema version {version}, this code reads version {SCHEMA_VERSION}. "
                "Collect the episodes again into another folder, or use the release that wrote them"
            )
        names = {field.name for field in fields(cls)}
        missing = names - set(content)
        if missing:
            raise ValueError(f"{where} lacks {sorted(missing)}. Delete it and run the collection again")
        known = {name: _tuples(content[name]) for name in names - {"configuration", "shards"}}
        shards = tuple(shard_from(record) for record in content["shards"])
        manifest = cls(configuration=content["configuration"], shards=shards, **known)
        if not shards:
            raise ValueError(f"{where} lists no shards. Collect at least one episode for the split {manifest.split!r}")
        return manifest


def shard_from(record: dict[str, Any]) -> Shard:
    """A shard's record from JSON, where tuples have become lists."""
    return Shard(**{name: _tuples(value) for name, value in record.items()})


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def canonical(content: Any) -> str:
    """JSON in one fixed form: equal content gives equal text."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file beside its place, flush it to the disk, then move it there."""
    beside = path.with_name(path.name + ".tmp")
    with open(beside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
