"""Shards: plain tar files of episodes that `tar tf` and the webdataset library read, and that can be memory-mapped.

A sample is `key.observations.npy`, `key.actions.npy`, `key.body.npy`, `key.truth.npy`, `key.meta.json`. Members are not
compressed, so an array is a view into the file and reading a window copies no more than the window.
Legend: T actions, C H W image, A action, P body, N truth.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import math
import mmap
import os
import struct
import tarfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.schema import ARRAYS, Episode, Manifest, Shard

_MEND = "Run the collection again: it re-makes shards that are missing or damaged"


def write_shard(path: Path, samples: Iterable[tuple[str, Episode, dict[str, Any]]]) -> Shard:
    """Write (key, episode, meta) samples to a tar file in one step: it is either there and whole, or not there.

    The same samples always give the same bytes.
    """
    from webdataset.writer import TarWriter  # pulls in the whole library, which reading does not need

    episodes = frames = 0
    shortest: int | None = None
    sums: NDArray[np.int64] = np.zeros(0, np.int64)
    beside = path.with_name(path.name + ".tmp")
    with open(beside, "wb") as file:
        with TarWriter(file, mtime=0, encoder=False) as tar:
            for key, episode, meta in samples:
                arrays = {f"{name}.npy": _npy(getattr(episode, name), kind) for name, kind in ARRAYS.items()}
                tar.write({"__key__": key, **arrays, "meta.json": json.dumps(meta, sort_keys=True).encode()})
                episodes, frames = episodes + 1, frames + len(episode.observations)
                shortest = min(len(episode.actions), shortest if shortest is not None else len(episode.actions))
                sums = _pixel_sums(episode.observations) + (sums if sums.size else 0)
        file.flush()
        os.fsync(file.fileno())
    if shortest is None:
        raise ValueError(f"no samples to write to {path}")
    record = Shard(
        name=path.name,
        bytes=beside.stat().st_size,
        sha256=file_sha256(beside),
        episodes=episodes,
        frames=frames,
        shortest=shortest,
        pixel_sums=tuple(sums[0].tolist()),
        pixel_square_sums=tuple(sums[1].tolist()),
    )
    os.replace(beside, path)
    return record


def _npy(array: NDArray[Any], dtype: str) -> bytes:
    assert array.dtype == dtype, f"{array.dtype} is not {dtype}"
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def _pixel_sums(observations: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Exact sums of pixels and of their squares for each channel: [2, C]."""
    counts = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in observations.swapaxes(0, 1)])
    return np.stack([counts @ np.arange(256) ** power for power in (1, 2)])


def file_sha256(path: Path) -> str:
    """Hash of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(folder: Path, shard: Shard, thorough: bool) -> str | None:
    """What is wrong with a shard, or None. Its size is always compared; its hash if `thorough`."""
    path = folder / shard.name
    if not path.is_file():
        return f"{shard.name} is missing"
    found = path.stat().st_size
    if found != shard.bytes:
        return f"{shard.name} has {found} bytes, expected {shard.bytes}"
    if thorough and file_sha256(path) != shard.sha256:
        return f"{shard.name} has another content than when it was written (sha256 differs)"
    return None


def verify(folder: Path, thorough: bool = True) -> Manifest:
    """Check every shard of a folder against its manifest, by size or also by content (`thorough`).

    Raises:
        ValueError: naming all shards that are missing or damaged.
    """
    manifest = Manifest.load(folder)
    found = [problem for shard in manifest.shards if (problem := damage(folder, shard, thorough))]
    if found:
        raise ValueError(f"damaged episodes in {folder}: {'; '.join(found)}. {_MEND}")
    return manifest


class EpisodeFolder:
    """The episodes of one split, read at random: `folder[i]` is the i-th, its arrays views into a memory-mapped shard.

    Shards are opened when first used, and once in each process. Sizes are checked at once, so a truncated shard is
    found before anything runs.

    Raises:
        ValueError: if the folder, its manifest or one of its shards is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = verify(folder, thorough=False)
        self._ends = np.cumsum([shard.episodes for shard in self.manifest.shards])
        self._open: dict[int, list[Episode]] = {}

    def __len__(self) -> int:
        return self.manifest.episodes

    def __getitem__(self, index: int) -> Episode:
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        if shard not in self._open:
            self._open[shard] = _map_shard(self.folder / self.manifest.shards[shard].name, self.manifest.shards[shard])
        return self._open[shard][index - int(self._ends[shard])]  # counted from the shard's end

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # memory maps stay in their process


def _map_shard(path: Path, shard: Shard) -> list[Episode]:
    """All episodes of a shard as views into it, in their order."""
    with open(path, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    samples: dict[str, dict[str, NDArray[Any]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, name = member.name.partition(".")
                array = name.removesuffix(".npy")
                if array in ARRAYS:
                    samples.setdefault(key, {})[array] = _view(content, member, ARRAYS[array])
        episodes = [Episode(**arrays) for arrays in samples.values()]
    except (tarfile.TarError, TypeError, ValueError, struct.error, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read ({error}). {_MEND}") from error
    if len(episodes) != shard.episodes:
        raise ValueError(f"{path} holds {len(episodes)} episodes, expected {shard.episodes}. {_MEND}")
    return episodes


def _view(content: mmap.mmap, member: tarfile.TarInfo, dtype: str) -> NDArray[Any]:
    """An uncompressed `.npy` member as an array that shares the file's memory."""
    start = member.offset_data
    if content[start : start + 8] != b"\x93NUMPY\x01\x00":
        raise ValueError(f"{member.name} is not a .npy array of version 1.0")
    (length,) = struct.unpack_from("<H", content, start + 8)
    found, shape = _npy_header(content[start + 10 : start + 10 + length])
    count = math.prod(shape)
    if found != dtype or member.size != 10 + length + count * np.dtype(dtype).itemsize:
        raise ValueError(f"{member.name} holds {found} {shape} in {member.size} bytes, expected {dtype}")
    return np.frombuffer(content, dtype, count, start + 10 + length).reshape(shape)


@lru_cache(maxsize=256)
def _npy_header(header: bytes) -> tuple[str, tuple[int, ...]]:
    """Dtype and shape; nearly all episodes of a data set share the same few headers."""
    fields = ast.literal_eval(header.decode("latin1"))
    if fields["fortran_order"]:
        raise ValueError("array in Fortran order, expected C order")
    return np.dtype(fields["descr"]).name, tuple(fields["shape"])
