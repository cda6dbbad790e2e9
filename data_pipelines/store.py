"""Where a data set lies: a local folder, a web server, an object store, a command; and the cache of what was fetched.

    data/two_rooms_33                     a folder
    https://host/two_rooms_33             files of a web server
    s3://bucket/two_rooms_33              any store that fsspec knows; s3 needs the package s3fs
    pipe:ssh host cat /data/two_rooms/{}  what a command writes, {} being train/000000.tar; runs a shell, so it
                                          is refused unless allowed

A shard that is not local is fetched whole, checked, and kept in the cache under the hash of its content.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from data_pipelines.schema import Shard

_ATTEMPTS = 3


class Location(Protocol):
    """Where the files of one split are."""

    def __str__(self) -> str: ...

    def read(self, name: str) -> bytes:
        """A small file's content; FileNotFoundError if it is missing."""
        ...

    def sizes(self, names: list[str]) -> list[int | None]:
        """Bytes of each file, -1 where it is missing; None where that can't be known without fetching it."""
        ...

    def local(self, shard: Shard) -> Path:
        """The shard as a local file; ValueError if what is fetched is damaged, OSError if it can't be had."""
        ...


class Folder:
    """A local folder: shards are used where they lie.

    Args:
        path: of the split.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def read(self, name: str) -> bytes:
        """A file's content."""
        return (self.path / name).read_bytes()

    def sizes(self, names: list[str]) -> list[int | None]:
        """Bytes of each file, -1 where it is missing."""
        paths = [self.path / name for name in names]
        return [path.stat().st_size if path.is_file() else -1 for path in paths]

    def local(self, shard: Shard) -> Path:
        """The shard where it lies."""
        return self.path / shard.name


class Cache:
    """A folder of files, each under the hash of its content, together of bounded size.

    Processes and nodes may share it: a file is made by one of them while the others wait, appears whole or not at all,
    and the ones that were not used for longest go first. A file that goes while it is mapped stays readable.

    Args:
        folder: where; made when needed.
        gigabytes: how much it may hold.
    """

    def __init__(self, folder: str, gigabytes: float = 50.0) -> None:
        if gigabytes <= 0:
            raise ValueError(f"cache_gigabytes={gigabytes}: give more than 0")
        self.folder, self.limit = Path(folder), int(gigabytes * 1e9)

    def get(self, name: str, make: Callable[[Path], None]) -> Path:
        """The file of this name; `make` writes it to a path if it is not there.

        Raises:
            ValueError: if it is larger than the cache.
        """
        path = self.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked(f"{name}.lock"):
            if path.is_file():
                os.utime(path)  # used now
                return path
            beside = path.with_name(f"{name}.{uuid4().hex}.tmp")
            try:
                make(beside)
                if beside.stat().st_size > self.limit:
                    raise ValueError(
                        f"the cache {self.folder} holds {self.limit / 1e9:g} GB, less than one shard "
                        f"({beside.stat().st_size / 1e9:g} GB). Give it more with data.store.cache_gigabytes"
                    )
                self._make_room(beside.stat().st_size)
                os.replace(beside, path)
            finally:
                beside.unlink(missing_ok=True)
        return path

    def _make_room(self, size: int) -> None:
        with self._locked("room.lock"):
            files = [path for path in self.folder.iterdir() if path.suffix not in (".lock", ".tmp")]
            aged = sorted((path.stat().st_mtime_ns, path.stat().st_size, path) for path in files)
            excess = sum(bytes_ for _, bytes_, _ in aged) + size - self.limit
            for _, bytes_, path in aged:
                if excess <= 0:
                    break
                path.unlink(missing_ok=True)
                excess -= bytes_

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with open(self.folder / name, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
            yield


class Remote:
    """Files behind a URL that fsspec understands.

    Args:
        url: of the split.
        cache: where fetched shards are kept.

    Raises:
        ValueError: if the protocol is unknown or its package is missing.
    """

    def __init__(self, url: str, cache: Cache) -> None:
        self.url, self.cache = url, cache
        self._files()

    def __str__(self) -> str:
        return self.url

    def _files(self) -> Any:
        """The file system; made anew in each process, as its threads don't survive a fork."""
        import fsspec

        try:
            return fsspec.filesystem(self.url.partition("://")[0])
        except (ImportError, ValueError) as error:
            raise ValueError(f"{self.url} cannot be opened: {error}") from error

    def read(self, name: str) -> bytes:
        """A file's content."""
        return self._tried(lambda files: files.cat_file(f"{self.url}/{name}"))

    def sizes(self, names: list[str]) -> list[int | None]:
        """Bytes of each file, -1 where it is missing, None where the server doesn't say."""

        def size(name: str) -> int | None:
            try:
                found = self._tried(lambda files: files.info(f"{self.url}/{name}")["size"])
            except FileNotFoundError:
                return -1
            return None if found is None else int(found)

        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(size, names))

    def local(self, shard: Shard) -> Path:
        """The shard in the cache, fetched if it is not there."""

        def fetch(path: Path) -> None:
            self._tried(lambda files: files.get_file(f"{self.url}/{shard.name}", str(path)))
            check_fetched(path, shard, str(self))

        return self.cache.get(shard.sha256, fetch)

    def _tried(self, work: Callable[[Any], Any]) -> Any:
        """Try a few times what a network may refuse; a file that is missing stays missing."""
        from aiohttp import ClientError

        for attempt in range(_ATTEMPTS):
            try:
                return work(self._files())
            except FileNotFoundError:
                raise
            except (OSError, ClientError) as error:
                if attempt == _ATTEMPTS - 1:
                    raise OSError(f"{self.url} does not answer: {type(error).__name__}: {error}") from error
                time.sleep(2.0**attempt)
        return None


class Pipe:
    """Files as a shell command writes them to its output.

    Args:
        command: with {} where the file's name goes.
        cache: where fetched shards are kept.
    """

    def __init__(self, command: str, cache: Cache) -> None:
        self.command, self.cache = command, cache

    def __str__(self) -> str:
        return f"pipe:{self.command}"

    def read(self, name: str) -> bytes:
        """What the command writes."""
        done = subprocess.run(self.command.replace("{}", shlex.quote(name)), shell=True, capture_output=True)
        if done.returncode:
            raise FileNotFoundError(f"{self} failed for {name}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    def sizes(self, names: list[str]) -> list[int | None]:
        """Not known."""
        return [None] * len(names)

    def local(self, shard: Shard) -> Path:
        """The shard in the cache, fetched if it is not there."""

        def fetch(path: Path) -> None:
            path.write_bytes(self.read(shard.name))
            check_fetched(path, shard, str(self))

        return self.cache.get(shard.sha256, fetch)


def check_fetched(path: Path, shard: Shard, where: str) -> None:
    """Raise a ValueError if a fetched file is not the shard that the manifest knows."""
    size = path.stat().st_size
    if size != shard.bytes:
        raise ValueError(f"{where}/{shard.name} has {size} bytes, expected {shard.bytes}")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != shard.sha256:
        raise ValueError(f"{where}/{shard.name} has the sha256 {found}, expected {shard.sha256}")


class Store:
    """Opens the places where data sets lie.

    Args:
        cache: folder of the cache, for shards that are fetched or unpacked.
        cache_gigabytes: how much it may hold.
        allow_pipe: whether `pipe:` may run shell commands.
    """

    def __init__(self, cache: str, cache_gigabytes: float = 50.0, allow_pipe: bool = False) -> None:
        self.cache, self.allow_pipe = Cache(cache, cache_gigabytes), allow_pipe

    def open(self, root: str, split: str) -> Location:
        """The place of a split of the data set at `root`.

        Raises:
            ValueError: if it names a command and that is not allowed, or a protocol that is unknown.
        """
        if root.startswith("pipe:"):
            if not self.allow_pipe:
                raise ValueError(f"{root!r} would run a shell command. If you trust it: data.store.allow_pipe=true")
            if "{}" not in root:
                raise ValueError(f"{root!r} has no {{}} where the name of the file goes, such as train/000000.tar")
            return Pipe(root.removeprefix("pipe:").replace("{}", f"{split}/{{}}"), self.cache)
        if "://" in root:
            return Remote(f"{root.rstrip('/')}/{split}", self.cache)
        return Folder(Path(root) / split)
