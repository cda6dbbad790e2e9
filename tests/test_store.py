"""Where data sets lie: over http and s3 they are the same as in a folder; the cache is bounded, checked and shared."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path

import pytest
from clocks import STEPS, UNEVEN, data, fingerprint, write

from data_pipelines import store as stores
from data_pipelines.episodes import DamagedEpisode, EpisodeFolder
from data_pipelines.schema import Shard
from data_pipelines.store import Cache, Store


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clocks")
    write(folder, UNEVEN)
    return folder


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder, notes what was asked for, and can be told to fail."""

    asked: list[str]
    failures: int

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        if type(self).failures:
            type(self).failures -= 1
            self.send_error(503)
        else:
            super().do_GET()


@pytest.fixture
def server(root: Path) -> Iterator[tuple[str, type[Quiet]]]:
    handler = type("Handler", (Quiet,), {"asked": [], "failures": 0})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(root))) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", handler
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("workers", [0, 1])
def test_http_streams_the_same_and_fetches_each_shard_once(
    workers: int, root: Path, server: tuple[str, type[Quiet]], tmp_path: Path
) -> None:
    url, handler = server
    store = Store(str(tmp_path))
    for _ in range(2):  # the second time from the cache
        module = data(url, store=store, workers=workers, start_method="spawn")
        assert fingerprint(module.train_dataloader()) == fingerprint(data(root).train_dataloader())
        module.teardown("fit")
    assert sorted(path for path in handler.asked if path.startswith("/train/") and path.endswith(".tar")) == [
        f"/train/00000{number}.tar" for number in range(3)
    ]


def test_the_next_block_is_fetched_while_training_is_in_one(
    root: Path, server: tuple[str, type[Quiet]], tmp_path: Path
) -> None:
    module = data(server[0], store=Store(str(tmp_path)), block_shards=1, steps_per_epoch=100)
    batches = module.train_dataloader()
    next(iter(batches))
    plan, cached = batches.ahead.plan, [tmp_path / shard.sha256 for shard in module.manifest.shards]
    (first,), (second,), (third,) = (plan.shards_of((0, block)) for block in range(3))
    while not (cached[first].is_file() and cached[second].is_file()):
        batches.ahead.reach(0)  # nothing is asked for twice
    assert not cached[third].exists()
    batches.close()


def test_what_the_cache_does_not_hold_is_not_fetched_ahead(
    root: Path, server: tuple[str, type[Quiet]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = data(server[0], block_shards=1, store=Store(str(tmp_path)))
    ahead = module.train_dataloader().ahead
    shards = module.manifest.shards
    sizes = [ahead.episodes.cached_bytes(number) for number in range(3)]
    assert sizes == [shard.bytes for shard in shards]
    for limit, fitting in ((sizes[0], [0]), (sizes[0] + sizes[1] - 1, [0]), (sum(sizes), [0, 1, 2]), (1, [])):
        monkeypatch.setattr(ahead.episodes.cache, "limit", limit)
        assert ahead._fitting([0, 1, 2]) == fitting
    assert data(root).train_dataloader().ahead is None


def test_training_goes_on_where_processes_cannot_start(
    root: Path, server: tuple[str, type[Quiet]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise BrokenExecutor

    monkeypatch.setattr(ProcessPoolExecutor, "submit", broken)
    module = data(server[0], block_shards=1, store=Store(str(tmp_path)))
    with pytest.warns(UserWarning, match="shards cannot be fetched ahead.*if __name__ == '__main__'"):
        assert fingerprint(module.train_dataloader()) == fingerprint(data(root, block_shards=1).train_dataloader())


def test_what_a_server_lacks_or_truncates_is_named(root: Path, tmp_path: Path, server: tuple[str, type[Quiet]]) -> None:
    url, _ = server
    store = Store(str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=rf"{re.escape(url)}/elsewhere/train/manifest.json is missing"):
        data(f"{url}/elsewhere", store=store).setup("fit")
    shard = root / "train" / "000001.tar"
    whole = shard.read_bytes()
    try:
        shard.write_bytes(whole[:-512])
        with pytest.raises(ValueError, match=r"000001.tar has \d+ bytes, expected \d+"):
            data(url, store=store).setup("fit")
        shard.write_bytes(whole[:-1] + b"x")
        with pytest.raises(DamagedEpisode, match=r"000001.tar has the sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"):
            list(data(url, store=store).train_dataloader())
        assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".tmp"]
        shard.unlink()
        with pytest.raises(ValueError, match="000001.tar is missing"):
            data(url, store=store).setup("fit")
    finally:
        shard.write_bytes(whole)


def test_a_server_that_fails_now_and_then_is_asked_again(
    root: Path, tmp_path: Path, server: tuple[str, type[Quiet]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = server
    waited: list[float] = []
    monkeypatch.setattr(stores.time, "sleep", waited.append)
    handler.failures = 2
    assert len(EpisodeFolder(Store(str(tmp_path)).open(url, "train"))) == 11
    assert waited == [1.0, 2.0]
    handler.failures = 3
    with pytest.raises(ValueError, match=r"manifest.json cannot be read: .*does not answer: ClientResponseError: 503"):
        EpisodeFolder(Store(str(tmp_path)).open(url, "train"))


def test_s3_streams_the_same(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    import boto3
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        bucket = boto3.resource("s3").create_bucket(Bucket="bucket")
        for path in root.rglob("*.*"):
            bucket.upload_file(str(path), f"clocks/{path.relative_to(root)}")
        module = data("s3://bucket/clocks", store=Store(str(tmp_path)))
        assert fingerprint(module.train_dataloader()) == fingerprint(data(root).train_dataloader())
    finally:
        running.stop()


def test_a_command_runs_only_with_consent(root: Path, tmp_path: Path) -> None:
    command = f"pipe:cat {root}/{{}}"
    with pytest.raises(ValueError, match=r"would run a shell command. If you trust it: data.store.allow_pipe=true"):
        data(command, store=Store(str(tmp_path))).setup("fit")
    store = Store(str(tmp_path), allow_pipe=True)
    assert fingerprint(data(command, store=store).train_dataloader()) == fingerprint(data(root).train_dataloader())
    with pytest.raises(ValueError, match=r"has no {} where the name of the file goes"):
        store.open("pipe:cat x", "train")
    with pytest.raises(ValueError, match=r"nowhere/train/{}/manifest.json is missing"):
        data(f"pipe:cat {root}/nowhere/{{}}", store=store).setup("fit")


def test_an_unknown_protocol_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"teapot://x/train cannot be opened: Protocol not known: teapot"):
        Store(str(tmp_path)).open("teapot://x", "train")


def make(path: Path, size: int, calls: Path) -> None:
    with calls.open("a") as file:
        file.write("x")
    path.write_bytes(b"x" * size)


def test_the_cache_forgets_what_was_not_used_for_longest(tmp_path: Path) -> None:
    cache, calls = Cache(str(tmp_path / "cache"), gigabytes=3e-6), tmp_path / "calls"  # 3000 bytes
    for age, name in enumerate("abc"):
        os.utime(cache.get(name, partial(make, size=1000, calls=calls)), ns=(age, age))
    cache.get("a", partial(make, size=1000, calls=calls))  # used now
    mapped = (tmp_path / "cache" / "b").open("rb")
    cache.get("d", partial(make, size=1000, calls=calls))
    assert {path.name for path in (tmp_path / "cache").iterdir() if path.suffix == ""} == {"a", "c", "d"}
    assert len(calls.read_text()) == 4
    assert len(mapped.read()) == 1000  # who has it open keeps it
    mapped.close()
    with pytest.raises(ValueError, match=r"holds 3e-06 GB, less than one shard \(4e-06 GB\).*cache_gigabytes"):
        cache.get("e", partial(make, size=4000, calls=calls))
    with pytest.raises(ValueError, match="cache_gigabytes=0: give more than 0"):
        Cache(str(tmp_path), 0)


def race(folder: str, calls: Path, name: str) -> int:
    return Cache(folder).get(name, partial(make, size=100_000, calls=calls)).stat().st_size


def test_processes_that_want_the_same_file_make_it_once(tmp_path: Path) -> None:
    names = ["a", "b", "c"] * 4
    with ProcessPoolExecutor(4, get_context("fork")) as pool:
        sizes = list(pool.map(partial(race, str(tmp_path / "cache"), tmp_path / "calls"), names))
    assert sizes == [100_000] * 12
    assert (tmp_path / "calls").read_text() == "xxx"


def test_splits_with_equal_names_are_told_apart(tmp_path: Path, server: tuple[str, type[Quiet]]) -> None:
    url, _ = server
    store = Store(str(tmp_path))
    module = data(url, store=store)
    write(tmp_path / "other", [[STEPS] * 4, [STEPS] * 5, [STEPS] * 2])
    shards: list[Shard] = [*module.train_episodes.manifest.shards]
    other = EpisodeFolder(tmp_path / "other" / "train").manifest.shards
    assert [one.name for one in shards] == [two.name for two in other]
    assert shards[1].sha256 != other[1].sha256  # the name in the cache
    assert fingerprint(module.val_dataloader()) == fingerprint(data(url, store=store).val_dataloader())
