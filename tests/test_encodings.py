"""Encodings: zstd gives back every byte, jpeg and video nearly; all stream like raw."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from clocks import COARSE, DENSE, STEPS, clock, data, exactly, fingerprint, write
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from data_pipelines.encodings import check, decode, encode, unpack
from data_pipelines.episodes import DamagedEpisode, EpisodeFolder
from data_pipelines.store import Cache, Store

pictures = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
)


def bytes_(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


@given(pictures)
def test_zstd_and_raw_give_back_every_byte(frames: np.ndarray) -> None:
    raw, packed = encode("raw", frames), encode("zstd", frames)
    assert unpack(bytes_(packed)) == raw
    assert np.array_equal(np.load(io.BytesIO(raw)), frames)


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(["jpeg", "video"]), st.integers(1, 40), st.sampled_from([1, 3]), st.integers(4, 20),
    st.integers(0, 99),
)  # fmt: skip
def test_any_frames_come_back_nearly(encoding: str, count: int, channels: int, side: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    coarse = chance.integers(256, size=(count, channels, 2, 2)).astype(np.float64)
    ramp = np.linspace(0, 1, side)
    mix = np.stack([1 - ramp, ramp])
    frames = np.einsum("nkij,iy,jx->nkyx", coarse, mix, mix).round().astype(np.uint8)  # smooth pictures
    member, nearly = bytes_(encode(encoding, frames)), {"jpeg": 4, "video": 12}[encoding]
    assert encode(encoding, frames) == member.tobytes()
    for asked in (range(count), range(count - 1, count), range(count // 2, count, 2), range(count // 3, count, 5)):
        out = np.empty((len(asked), channels, side, side), np.uint8)
        decode(encoding, member, asked, out)
        assert np.abs(out.astype(int) - frames[asked.start : asked.stop : asked.step]).mean() < nearly


def test_damaged_members_are_refused() -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack(bytes_(encode("zstd", clock(0).observations)[:-5]))
    member = bytes_(encode("jpeg", clock(0).observations))
    out = np.empty((2, 3, 4, 5), np.uint8)
    with pytest.raises(ValueError, match="no table of 43 frames"):
        decode("jpeg", member, range(41, 43), out)
    with pytest.raises(ValueError, match="no table"):
        decode("jpeg", member[:4], range(2), out)
    film = bytes_(encode("video", clock(0).observations))
    with pytest.raises(ValueError, match="frame 41 is missing"):
        decode("video", film, range(40, 43), np.empty((3, 3, 4, 5), np.uint8))
    with pytest.raises(ValueError, match="no film"):
        decode("video", film[:100], range(2), out)
    with pytest.raises(ValueError, match=r"has \(4, 5\) pixels, expected \(5, 5\)"):
        decode("jpeg", member, range(2), np.empty((2, 3, 5, 5), np.uint8))


@pytest.mark.parametrize("encoding", ["zstd", "jpeg", "video"])
@pytest.mark.parametrize("workers", [0, 2])
def test_all_encodings_stream_alike(encoding: str, workers: int, tmp_path: Path) -> None:
    shards, shape = [[STEPS, 30, 24], [25, STEPS]], (3, 16, 16)  # frames of one colour each are exact in jpeg too
    for name in ("raw", encoding):
        write(tmp_path / name, shards, name, shape=shape)
    store = Store(str(tmp_path / "cache"))
    streams = {name: data(tmp_path / name, store=store, workers=workers) for name in ("raw", encoding)}
    for batch in streams[encoding].train_dataloader():
        if encoding == "zstd":
            exactly(batch, (DENSE, COARSE))
    if encoding == "zstd":
        assert fingerprint(streams["zstd"].train_dataloader()) == fingerprint(streams["raw"].train_dataloader())
        assert fingerprint(streams["zstd"].val_dataloader()) == fingerprint(streams["raw"].val_dataloader())
    else:
        pairs = zip(*(stream.train_dataloader() for stream in streams.values()), strict=True)
        for raw, lossy in pairs:
            for one, two in zip(raw, lossy, strict=True):
                assert one.times.equal(two.times)
                assert one.actions.equal(two.actions)
                assert (one.observations.int() - two.observations.int()).abs().max() <= 3


def test_zstd_shards_are_unpacked_once_into_the_cache(tmp_path: Path) -> None:
    write(tmp_path, [[STEPS] * 3], "zstd", splits=["train"])
    with pytest.raises(ValueError, match="zstd shards, which are unpacked into a cache"):
        EpisodeFolder(tmp_path / "train")
    cache = Cache(str(tmp_path / "cache"))
    folder = EpisodeFolder(tmp_path / "train", cache)
    for number, episode in enumerate(folder):
        for found, expected in zip(episode, clock(number), strict=True):
            assert np.array_equal(found, expected)
    (unpacked,) = (tmp_path / "cache").glob("*-unpacked")
    before = unpacked.stat().st_ino
    EpisodeFolder(tmp_path / "train", cache)[0]
    assert unpacked.stat().st_ino == before


def test_a_damaged_zstd_member_is_named(tmp_path: Path) -> None:
    write(tmp_path, [[STEPS] * 3], "zstd", splits=["train"])
    path = tmp_path / "train" / "000000.tar"
    with tarfile.open(path) as tar:
        member = tar.getmember("s000000-e000001.observations.npy.zst")
    content = bytearray(path.read_bytes())
    content[member.offset_data + 20] ^= 255
    path.write_bytes(content)
    folder = EpisodeFolder(tmp_path / "train", Cache(str(tmp_path / "cache")))
    for _ in range(2):
        with pytest.raises(DamagedEpisode, match=r"000000.tar: s000000-e000001.observations.npy.zst at offset \d+"):
            folder[0]
    assert not list((tmp_path / "cache").glob("*-unpacked"))


def test_encodings_that_cannot_be_used_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"encoding='png': choose one of \['raw', 'zstd', 'jpeg', 'video'\]"):
        check("png", 3)
    for encoding in ("jpeg", "video"):
        with pytest.raises(ValueError, match="pictures of 1 or 3 channels, not 2: choose raw or zstd"):
            check(encoding, 2)
    for name, encoding in (("zstandard", "zstd"), ("simplejpeg", "jpeg")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ValueError, match=rf"needs {name}: pip install 'lightning_jepa\[encodings\]'"):
            check(encoding, 3)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"videos need PyAV: pip install 'lightning_jepa\[video\]'"):
        check("video", 3)
