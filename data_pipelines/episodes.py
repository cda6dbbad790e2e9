"""The episodes of one split, read at random through the index.

Shards are memory-mapped when first used, once in each process; the bytes of an episode are compared with their hashes
when it is first read there. Reading a window copies the window and no more.
Legend: E episodes, F frames, C H W image.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipelines import index
from data_pipelines.encodings import DECODED, check, decode, unpack
from data_pipelines.schema import ARRAYS, MANIFEST, Episode, Manifest, rows_of
from data_pipelines.shards import AT_ONCE, MEND, member_damage, size_damage
from data_pipelines.store import Cache, Folder, Location

_ITEM = {name: np.dtype(dtype).itemsize for name, dtype in ARRAYS.items()}


class DamagedEpisode(ValueError):
    """An episode that can't be read as it was written; says what is wrong with it and where."""


class EpisodeFolder:
    """The episodes of one split: `folder[i]` is the i-th, `folder.copy` brings parts of many.

    The sizes of all shards are compared at once, so that a missing or truncated one is found before anything runs.

    Args:
        location: where they lie; a path is a local folder.
        cache: for zstd shards, which are unpacked.
        verify: "content" compares an episode's hashes when it is first read, "size" only the shards' sizes.
        tolerant: keep damage for the moment when an episode is read (`DamagedEpisode`).

    Raises:
        ValueError: if the folder, its manifest, its index or, unless tolerant, one of its shards is missing or damaged.
    """

    def __init__(
        self,
        location: Location | Path,
        cache: Cache | None = None,
        verify: str = "content",
        tolerant: bool = False,
    ) -> None:
        if verify not in ("content", "size"):
            raise ValueError(f"verify={verify!r}: choose 'content' or 'size'")
        self.location: Location = Folder(location) if isinstance(location, Path) else location
        self.cache, self.verify = cache, verify
        self.manifest = self._manifest()
        self.encoding = self.manifest.encoding
        check(self.encoding, self.manifest.observation_shape[0])
        if self.encoding == "zstd" and cache is None:
            raise ValueError(f"{self.location} holds zstd shards, which are unpacked into a cache: give one")
        self.rows = index.parse(self._read(index.INDEX), self.manifest, f"{self.location}/{index.INDEX}")
        self.shard_of: NDArray[np.int64] = self.rows["shard"].astype(np.int64)
        self.actions: NDArray[np.int64] = self.rows["length"].astype(np.int64)
        self._row_bytes = {name: width * _ITEM[name] for name, width in self.manifest.widths.items()}
        self._firsts = np.searchsorted(self.shard_of, np.arange(len(self.manifest.shards)))
        self._bases = self._find_bases()
        self._broken = self._compare_sizes()
        if self._broken and not tolerant:
            raise ValueError(f"damaged episodes in {self.location}: {'; '.join(self._broken.values())}. {MEND}")
        self._open: dict[int, NDArray[np.uint8]] = {}
        self._views: dict[int, memoryview] = {}  # of the same
        self._checked = np.zeros(len(self), bool)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Episode:
        if not 0 <= number < len(self):
            raise IndexError(f"episode {number} of {len(self)}")
        self.content(number)
        own, arrays = np.array([number]), {}
        for name, dtype in ARRAYS.items():
            count = rows_of(name, int(self.actions[number]))
            raw = np.empty((1, count * self._row_bytes[name]), np.uint8)
            if name == "observations" and self.decoded:
                self.decode(number, 0, count, 1, raw[0])
            else:
                self.copy(own, name, np.zeros(1, np.int64), count, 1, raw)
            shape = self.manifest.observation_shape if name == "observations" else (self.manifest.widths[name],)
            arrays[name] = raw.view(dtype).reshape(count, *shape)
        return Episode(**arrays)

    def meta(self, number: int) -> dict[str, Any]:
        """What is known of an episode besides its arrays."""
        path = self.location.local(self.manifest.shards[int(self.shard_of[number])])  # a zstd shard's own file
        offset, size, _ = self.rows["meta"][number].item()
        with open(path, "rb") as file:
            file.seek(offset)
            content: dict[str, Any] = json.loads(file.read(size))
        return content

    def copy(
        self,
        numbers: NDArray[np.int64],
        array: str,
        starts: NDArray[np.int64],
        length: int,
        stride: int,
        out: NDArray[np.uint8],
    ) -> None:
        """Rows start, start + stride, ... of an array of episodes whose `content` was found good.

        Args:
            numbers: [B], of the episodes.
            array: one of `ARRAYS`; observations only if they need not be `decoded`.
            starts: [B], the first row from each.
            length: how many rows.
            stride: rows from one to the next.
            out: uint8 [B, bytes of these rows].
        """
        width = self._row_bytes[array]
        if width == 0:
            return
        span = (length - 1) * stride + 1
        firsts = (self._bases[array][numbers] + starts * width).tolist()
        shards = self.shard_of[numbers].tolist()
        if stride == 1:
            # Memory views cost a third of what arrays cost for each row.
            size, begin, views, flat = length * width, 0, self._views, out.reshape(-1).data
            for shard, first in zip(shards, firsts, strict=True):
                flat[begin : begin + size] = views[shard][first : first + size]
                begin += size
        else:
            size, strided, opened = span * width, out.reshape(len(out), length, width), self._open
            for row, (shard, first) in enumerate(zip(shards, firsts, strict=True)):
                strided[row] = opened[shard][first : first + size].reshape(span, width)[::stride]

    def decode(self, number: int, start: int, length: int, stride: int, out: NDArray[np.uint8]) -> None:
        """Frames start, start + stride, ... of an episode whose pictures are `decoded`, into uint8 [bytes of these].

        Raises:
            DamagedEpisode: if the episode can't be read.
        """
        base, size, _ = self.rows["observations"][number].item()
        member = self.content(number)[base : base + size]
        frames = range(start, start + (length - 1) * stride + 1, stride)
        try:
            decode(self.encoding, member, frames, out.reshape(length, *self.manifest.observation_shape))
        except ValueError as error:
            raise self._damaged(
                number, f"{self._name(number)}.{index.suffix('observations', self.encoding)}: {error}"
            ) from error

    def ready(self, numbers: NDArray[np.int64]) -> bool:
        """Whether all of these episodes are known to be good, and can be copied as they are."""
        return not self.decoded and bool(self._checked[numbers].all())

    @property
    def decoded(self) -> bool:
        """Whether pictures are decoded, not copied."""
        return self.encoding in DECODED

    def content(self, number: int) -> NDArray[np.uint8]:
        """The bytes of the shard that an episode is in, once they are known to be good."""
        shard = int(self.shard_of[number])
        content = self._open.get(shard)
        if content is None:
            content = self._open[shard] = self._map(shard, number)
            self._views[shard] = content.data
        if not self._checked[number]:
            if self.verify == "content" and self.encoding != "zstd":  # those were compared when they were unpacked
                row, place = self.rows[number], number - int(self._firsts[shard])
                if (problem := member_damage(content, row, place, self.encoding)) is not None:
                    raise self._damaged(number, problem)
            self._checked[number] = True
        return content

    def fetch(self, shard: int) -> None:
        """Bring a shard into the cache, if that is where it is read; what is wrong with it is told when it is read."""
        with suppress(OSError, ValueError):
            self._local(shard)

    def cached_bytes(self, shard: int) -> int:
        """What a shard takes of the cache."""
        record = self.manifest.shards[shard]
        own = self.actions[self.shard_of == shard]
        unpacked = sum(int((rows_of(name, own) * self._row_bytes[name]).sum()) for name in ARRAYS)
        unpacked = unpacked if self.encoding == "zstd" else 0
        return unpacked + (0 if isinstance(self.location, Folder) else record.bytes)

    @property
    def fetched(self) -> bool:
        """Whether shards come into a cache before they are read."""
        return self.encoding == "zstd" or not isinstance(self.location, Folder)

    def __getstate__(self) -> dict[str, Any]:
        # Memory maps stay in their process.
        return {**self.__dict__, "_open": {}, "_views": {}, "_checked": np.zeros(len(self), bool)}

    def _manifest(self) -> Manifest:
        if isinstance(self.location, Folder):
            return Manifest.load(self.location.path)
        return Manifest.parse(self._read(MANIFEST), f"{self.location}/{MANIFEST}")

    def _read(self, name: str) -> bytes:
        try:
            return self.location.read(name)
        except FileNotFoundError as error:
            raise ValueError(f"{self.location}/{name} is missing. {MEND}") from error
        except OSError as error:
            raise ValueError(f"{self.location}/{name} cannot be read: {error}") from error

    def _compare_sizes(self) -> dict[int, str]:
        """What is wrong with each damaged shard, as far as its size tells."""
        shards, broken = self.manifest.shards, {}
        sizes = self.location.sizes([shard.name for shard in shards])
        for number, (shard, found) in enumerate(zip(shards, sizes, strict=True)):
            if found is not None:
                rows = self.rows[self._firsts[number] : self._firsts[number] + shard.episodes]
                if (problem := size_damage(shard, rows, self.encoding, found)) is not None:
                    broken[number] = problem
        return broken

    def _name(self, number: int) -> str:
        shard = int(self.shard_of[number])
        return index.key(shard, number - int(self._firsts[shard]))

    def _damaged(self, number: int, problem: str) -> DamagedEpisode:
        name = self.manifest.shards[int(self.shard_of[number])].name
        return DamagedEpisode(f"{self.location}/{name}: {problem}. {MEND}")

    def _find_bases(self) -> dict[str, NDArray[np.int64]]:
        """Where in the mapped file each array of each episode begins: [E] for each."""
        bytes_ = {name: rows_of(name, self.actions) * self._row_bytes[name] for name in ARRAYS}
        if self.encoding == "zstd":
            # Unpacked files hold the arrays alone, one after the other.
            sizes = np.stack([bytes_[name] for name in ARRAYS], 1)
            ends = np.cumsum(sizes.ravel()).reshape(sizes.shape)
            starts = ends - sizes - (ends - sizes)[self._firsts, 0][self.shard_of][:, None]
            return dict(zip(ARRAYS, starts.T, strict=True))
        return {name: self.rows[name]["offset"] + self.rows[name]["bytes"] - bytes_[name] for name in ARRAYS}

    def _map(self, shard: int, number: int) -> NDArray[np.uint8]:
        """A shard's bytes; `number` of the episode for which they are wanted."""
        if shard in self._broken:
            raise DamagedEpisode(f"{self.location}: {self._broken[shard]}. {MEND}")
        record = self.manifest.shards[shard]
        try:
            try:
                return mapped(self._local(shard))
            except FileNotFoundError:  # another process made room in the cache in this very moment
                return mapped(self._local(shard))
        except (OSError, ValueError) as error:
            # The message stays, so that a shard that can't be had is not asked for again with every window.
            self._broken[shard] = str(error) if record.name in str(error) else f"{record.name}: {error}"
            raise self._damaged(number, self._broken[shard]) from error

    def _local(self, shard: int) -> Path:
        """The file that holds a shard's arrays."""
        record = self.manifest.shards[shard]
        if self.encoding != "zstd":
            return self.location.local(record)
        assert self.cache is not None
        return self.cache.get(f"{record.sha256}-unpacked", lambda beside: self._unpack(shard, beside))

    def _unpack(self, shard: int, beside: Path) -> None:
        """Write all arrays of a zstd shard, one after the other."""
        content = mapped(self.location.local(self.manifest.shards[shard]))
        first = int(self._firsts[shard])
        with open(beside, "wb", buffering=AT_ONCE) as file:
            for place in range(self.manifest.shards[shard].episodes):
                number = first + place
                if (problem := member_damage(content, self.rows[number], place, self.encoding)) is not None:
                    raise ValueError(problem)
                for name in ARRAYS:
                    offset, size, _ = self.rows[name][number].item()
                    member = content[offset : offset + size]
                    array = np.frombuffer(unpack(member), np.uint8) if name == "observations" else member
                    bytes_ = rows_of(name, int(self.actions[number])) * self._row_bytes[name]
                    file.write(array[len(array) - bytes_ :].data)


def mapped(path: Path) -> NDArray[np.uint8]:
    """A file as uint8 [bytes], read as it is used. No file stays open, however many are mapped."""
    storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
    bytes_ = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[arg-type]  # the stubs know no storages
    content: NDArray[np.uint8] = bytes_.numpy()
    content.flags.writeable = False
    return content
