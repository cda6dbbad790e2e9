"""Shards: plain tar files of episodes that `tar tf` and the webdataset library read, and that can be memory-mapped.

A sample is `KEY.observations.npy` (or another encoding), `KEY.NAME.npy` for each other array of an `Episode`, and
`KEY.meta.json`. Members are not compressed by the tar, so an array is a part of the file.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipelines import index
from data_pipelines.encodings import encode, npy
from data_pipelines.schema import ARRAYS, Episode, Manifest, Shard, rows_of

MEND = (
    "Run the command that made it again: it makes shards that are missing or damaged once more. "
    "Data that were copied, copy again"
)

AT_ONCE = 8 << 20  # bytes that are written at once, so that the system can keep them in huge pages


class Packed(NamedTuple):
    """A shard that was written: its record, the rows of the index, and the shapes that all of its episodes have."""

    shard: Shard
    rows: NDArray[Any]
    shapes: tuple[tuple[int, ...], ...]  # of one time step, for each of ARRAYS


def shard_name(number: int) -> str:
    """The file of the shard of this number."""
    return f"{number:06d}.tar"


def write_shard(
    folder: Path, number: int, episodes: Iterable[tuple[Episode, dict[str, Any]]], encoding: str = "raw"
) -> Packed:
    """Write (episode, meta) samples to a tar file in one step: it is either there and whole, or not there.

    The same samples always give the same bytes.

    Raises:
        ValueError: if there are none, or one has other shapes or types than it should have or than the first has.
    """
    from webdataset.writer import TarWriter  # pulls in the whole library, which reading does not need

    path = folder / shard_name(number)
    beside = path.with_name(path.name + ".tmp")
    lengths: list[int] = []
    shapes: tuple[tuple[int, ...], ...] | None = None
    sums: NDArray[np.int64] = np.zeros(0, np.int64)
    with open(beside, "wb", buffering=AT_ONCE) as file:
        with TarWriter(file, mtime=0, encoder=False) as tar:
            for count, (episode, meta) in enumerate(episodes):
                key = index.key(number, count)
                shapes = _checked(episode, shapes, f"episode {key}")
                content = {"observations": encode(encoding, episode.observations)}
                content |= {name: npy(getattr(episode, name)) for name in ARRAYS if name != "observations"}
                content["meta"] = json.dumps(meta, sort_keys=True).encode()
                tar.write({"__key__": key, **{index.suffix(name, encoding): content[name] for name in index.MEMBERS}})
                lengths.append(len(episode.actions))
                sums = _pixel_sums(episode.observations) + (sums if sums.size else 0)
        file.flush()
        os.fsync(file.fileno())
    if shapes is None:
        raise ValueError(f"no episodes to write to {path}")
    shard = Shard(
        name=path.name,
        bytes=beside.stat().st_size,
        sha256=file_sha256(beside),
        episodes=len(lengths),
        frames=sum(lengths) + len(lengths),
        shortest=min(lengths),
        pixel_sums=tuple(sums[0].tolist()),
        pixel_square_sums=tuple(sums[1].tolist()),
    )
    rows = _rows(beside, number, lengths, encoding)
    os.replace(beside, path)
    return Packed(shard, rows, shapes)


def _checked(episode: Episode, before: tuple[tuple[int, ...], ...] | None, what: str) -> tuple[tuple[int, ...], ...]:
    """The shapes of one time step, if they and the types are as they should be."""
    steps = len(episode.actions)
    for name, dtype in ARRAYS.items():
        array, axes = getattr(episode, name), 4 if name == "observations" else 2
        expected = rows_of(name, steps)
        if array.dtype != dtype or array.ndim != axes or len(array) != expected:
            raise ValueError(
                f"{what} has {name} {array.dtype} {list(array.shape)}; with {steps} actions it needs {dtype}, "
                f"{axes} axes and {expected} rows (an episode of T actions has T + 1 observations)"
            )
    if episode.goal.size not in (0, episode.observations[0].size):
        raise ValueError(f"{what} has a goal of {episode.goal.size} bytes; it is a picture like the observations")
    shapes = tuple(array.shape[1:] for array in episode)
    if steps < 1 or before not in (None, shapes):
        raise ValueError(
            f"{what} has {steps} actions and arrays of {shapes} for each step; it needs at least 1 action, and the "
            f"shapes of the episodes before it: {before or 'any'}"
        )
    return shapes


def _pixel_sums(observations: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Exact sums of pixels and of their squares for each channel: [2, C]."""
    counts = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in observations.swapaxes(0, 1)])
    return np.stack([counts @ np.arange(256) ** power for power in (1, 2)])


def _rows(path: Path, number: int, lengths: list[int], encoding: str) -> NDArray[Any]:
    """The index of a shard that was just written."""
    content = np.fromfile(path, np.uint8)
    rows = np.zeros(len(lengths), index.ROW)
    rows["shard"], rows["length"] = number, lengths
    places = {
        f"{index.key(number, episode)}.{index.suffix(member, encoding)}": (episode, member)
        for episode in range(len(lengths))
        for member in index.MEMBERS
    }
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            assert info.offset_data - info.offset == index.HEADER, f"{info.name} has a long header"
            episode, member = places.pop(info.name)
            found = index.member_hash(content, info.offset_data, info.size)
            rows[member][episode] = (info.offset_data, info.size, found)
    assert not places
    return rows


def file_sha256(path: Path) -> str:
    """Hash of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(folder: Path, shard: Shard, rows: NDArray[Any], encoding: str, thorough: bool) -> str | None:
    """What is wrong with a shard, or None. Its size is always compared; its content if `thorough`.

    Args:
        folder: where it lies.
        shard: what is known of it.
        rows: its part of the index.
        encoding: of its observations.
        thorough: whether to read it.
    """
    path = folder / shard.name
    found = path.stat().st_size if path.is_file() else -1
    if (problem := size_damage(shard, rows, encoding, found)) is not None:
        return problem
    if thorough and file_sha256(path) != shard.sha256:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            content = np.array(np.frombuffer(mapped, np.uint8))
        for episode, row in enumerate(rows):
            if (problem := member_damage(content, row, episode, encoding)) is not None:
                return f"{shard.name}: {problem}"
        return f"{shard.name} has another content than when it was written, between its members (sha256 differs)"
    return None


def size_damage(shard: Shard, rows: NDArray[Any], encoding: str, found: int) -> str | None:
    """What the size that was found, -1 for none, says of a shard: None if it is as it should be."""
    if found == shard.bytes:
        return None
    if found < 0:
        return f"{shard.name} is missing"
    problem = f"{shard.name} has {found} bytes, expected {shard.bytes}"
    parts = [
        (*rows[member][episode].item()[:2], f"{_key(rows[episode], episode)}.{index.suffix(member, encoding)}")
        for episode in range(len(rows))
        for member in index.MEMBERS
    ]
    cut = min(((offset, name) for offset, size, name in parts if offset + size > found), default=None)
    return problem if cut is None else f"{problem}: it ends before {cut[1]} at offset {cut[0]} does"


def _key(row: Any, episode: int) -> str:
    return index.key(int(row["shard"]), episode)


def member_damage(content: NDArray[np.uint8], row: Any, episode: int, encoding: str) -> str | None:
    """The first member of an episode whose bytes, or whose header's, are not what the index knows, or None.

    Args:
        content: the shard, uint8.
        row: of the index.
        episode: counted in the shard.
        encoding: of the observations.
    """
    for member in index.MEMBERS:
        offset, size, expected = row[member].item()
        if (found := index.member_hash(content, offset, size)) != expected:
            name = f"{_key(row, episode)}.{index.suffix(member, encoding)}"
            return f"{name} at offset {offset}: expected the hash {expected:016x}, found {found:016x}"
    return None


def verify(folder: Path, thorough: bool = True) -> Manifest:
    """Check every shard of a folder against its manifest, by size or also by content (`thorough`).

    Raises:
        ValueError: naming all shards that are missing or damaged, and where.
    """
    manifest = Manifest.load(folder)
    parts = zip(manifest.shards, split_index(folder, manifest), strict=True)
    found = [problem for shard, part in parts if (problem := damage(folder, shard, part, manifest.encoding, thorough))]
    if found:
        raise ValueError(f"damaged episodes in {folder}: {'; '.join(found)}. {MEND}")
    return manifest


def split_index(folder: Path, manifest: Manifest) -> list[NDArray[Any]]:
    """The index of a local folder, cut into the parts of its shards.

    Raises:
        ValueError: if it is missing or not the one that the manifest knows.
    """
    path = folder / index.INDEX
    if not path.is_file():
        raise ValueError(f"{path} is missing. {MEND}")
    rows = index.parse(path.read_bytes(), manifest, str(path))
    return np.split(rows, np.cumsum([shard.episodes for shard in manifest.shards])[:-1])
