"""The index of a folder of shards: where the members of every episode lie, and what their bytes hash to.

One row for each episode, written when the shards are packed. With it a window is read by offset: no tar header is
parsed and no shard is opened to count what is in it. A hash covers a member and its tar header.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipelines.encodings import SUFFIXES
from data_pipelines.schema import ARRAYS, Manifest, write_atomically

INDEX = "index.npy"
HEADER = 512  # bytes of a tar header, in front of each member
MEMBERS = (*ARRAYS, "meta")
_PART = np.dtype([("offset", "<i8"), ("bytes", "<i8"), ("hash", "<u8")])
ROW = np.dtype([("shard", "<i4"), ("length", "<i4"), *((name, _PART) for name in MEMBERS)])


def key(shard: int, episode: int) -> str:
    """The key of an episode, counted in its shard: what its members' names begin with."""
    return f"s{shard:06d}-e{episode:06d}"


def suffix(member: str, encoding: str) -> str:
    """What a member's name ends with."""
    endings = {"meta": "meta.json", "observations": f"observations.{SUFFIXES[encoding]}"}
    return endings.get(member, f"{member}.npy")


def member_hash(content: NDArray[np.uint8], offset: int, size: int) -> int:
    """Hash of a member of a shard's content and of its header."""
    return xxhash.xxh3_64_intdigest(content[offset - HEADER : offset + size].data)


def write(folder: Path, rows: NDArray[Any]) -> str:
    """Write the index in one step; returns its sha256."""
    stream = io.BytesIO()
    np.save(stream, rows)
    write_atomically(folder / INDEX, stream.getvalue())
    return hashlib.sha256(stream.getvalue()).hexdigest()


def parse(content: bytes, manifest: Manifest, where: str) -> NDArray[Any]:
    """The rows that an index file holds.

    Raises:
        ValueError: if it is not the index that the manifest knows.
    """
    if hashlib.sha256(content).hexdigest() != manifest.index_sha256:
        raise ValueError(
            f"{where} is not the index that its manifest knows (sha256 differs). Run the collection again into another "
            "folder, or copy the folder again from where it came"
        )
    rows: NDArray[Any] = np.load(io.BytesIO(content))
    return rows
