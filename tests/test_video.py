"""Videos into shards: each clip holds the frames of its time, whatever the order in which a file stores them."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.episodes import EpisodeFolder
from data_pipelines.sources import video

av = pytest.importorskip("av", reason="videos need PyAV: pip install 'lightning_jepa[video]'")

BITS = 2 ** np.arange(16).reshape(4, 4)
B_FRAMES = {"x264-params": "bframes=3:b-adapt=0:open-gop=1:keyint=12:min-keyint=12"}
FORMATS: dict[str, tuple[str, dict[str, str]]] = {
    "b.mp4": ("libx264", B_FRAMES),
    "b.mkv": ("libx264", B_FRAMES),
    "b.ts": ("libx264", B_FRAMES),
    "b265.mp4": ("libx265", {"x265-params": "log-level=none:bframes=3:open-gop=1:keyint=12"}),
    "b.mpg": ("mpeg2video", {"bf": "2"}),
    "hidden.webm": ("libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "9", "deadline": "realtime", "g": "12"}),
    "keys.avi": ("mjpeg", {}),
    "lossless.mkv": ("ffv1", {"g": "12"}),
}
PIXELS = {"mjpeg": "yuvj420p", "ffv1": "bgr0"}


def write(path: Path, frames: int, codec: str = "ffv1", options: dict[str, str] | None = None, gap: int = 0) -> Path:
    """A video of numbered frames: 4 x 4 fields, one for each bit of the number; after frame 20 a pause."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 96, 64, PIXELS.get(codec, "yuv420p")
        stream.time_base = stream.codec_context.time_base = Fraction(1, 25)
        for number in range(frames):
            fields = np.where(number & BITS, 220, 30).astype(np.uint8).repeat(16, 0).repeat(16, 1)
            picture = np.pad(fields, ((0, 0), (16, 16)))[..., None].repeat(3, 2)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number + gap * (number > 20), Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbers(episode: Any) -> list[int]:
    """Which frames of the video an episode shows; its pictures are the squares in their middles."""
    centres = episode.observations[:, 0, 8::16, 8::16]
    return (BITS * (centres > 128)).sum((1, 2)).tolist()


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["video", *map(str, arguments)])
    video.main()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("every", [1, 3])
def test_clips_hold_the_frames_of_their_times(
    name: str, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / name, 100, *FORMATS[name])
    way = ["--train", path, "--steps", 4, "--every", every, "--crop", "--episodes-per-shard", 2]
    command(monkeypatch, tmp_path / "data", *way)
    first = 0
    for split, count in {1: {"train": 18, "val": 2}, 3: {"train": 5, "val": 1}}[every].items():
        folder = EpisodeFolder(tmp_path / "data" / split)
        assert len(folder) == count  # the last clip of every=3 begins at frame 75 and ends at 87
        for number, episode in enumerate(folder):
            assert numbers(episode) == list(range(first, first + 5 * every, every))
            assert episode.actions.shape == (4, 0)
            assert folder.meta(number) == {
                "file": name,
                "first_frame": first,
                "every": every,
                "seconds": pytest.approx(first / 25, abs=1e-3),
                "frames_per_second": pytest.approx(25, abs=0.02),
            }
            first += 5 * every


def test_a_clip_needs_no_frames_after_its_last(tmp_path: Path) -> None:
    write(tmp_path / "a.mkv", 28)
    assert video.VideoClips(str(tmp_path / "a.mkv"), steps=4, every=3).count("train") == 1
    source = video.VideoClips(str(tmp_path / "a.mkv"), steps=4, every=3, crop=True)
    assert numbers(next(source.episodes("val", range(1)))[0]) == [15, 18, 21, 24, 27]
    assert source.dropped == 0


def test_frames_count_in_their_order_also_where_time_jumps(tmp_path: Path) -> None:
    source = video.VideoClips(str(write(tmp_path / "a.mkv", 50, gap=100)), steps=9, crop=True)
    clips = list(source.episodes("train", range(4)))
    assert [numbers(episode) for episode, _ in clips] == [list(range(first, first + 10)) for first in (0, 10, 20, 30)]
    assert [meta["seconds"] for _, meta in clips] == [0, 0.4, 0.8, 5.2]


def test_any_order_any_processes_the_same_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, frames in enumerate((41, 7, 3, 60)):
        write(tmp_path / "clips" / f"{number}.mp4", frames, *FORMATS["b.mp4"])
    way = ["--train", tmp_path / "clips/*.mp4", "--steps", 3, "--episodes-per-shard", 4, "--val-share", 0.3, "--crop"]
    command(monkeypatch, tmp_path / "one", *way)
    command(monkeypatch, tmp_path / "two", *way, "--workers", 2)
    one, two = (EpisodeFolder(tmp_path / name / "train") for name in ("one", "two"))
    assert one.manifest.digest == two.manifest.digest
    shown = [(one.meta(i)["file"], one.meta(i)["first_frame"], numbers(one[i])[0]) for i in range(len(one))]
    # Of 10, 1, 0 and 15 clips; a single one is for training.
    expected = [("0.mp4", 4 * i) for i in range(7)] + [("1.mp4", 0)] + [("3.mp4", 4 * i) for i in range(11)]
    assert shown == [(name, first, first) for name, first in expected]
    source = video.VideoClips(str(tmp_path / "clips/*.mp4"), steps=3, val_share=0.3, crop=True)
    assert numbers(next(source.episodes("train", range(9, 10)))[0]) == [4, 5, 6, 7]
    assert source.count("val") == 3 + 4
    parted = video.VideoClips(str(tmp_path / "clips/*.mp4"), steps=3, val_share=0.3, test_share=0.2)
    assert [parted.count(split) for split in ("train", "val", "test")] == [5 + 1 + 8, 3 + 4, 2 + 3]
    apart = video.VideoClips(str(tmp_path / "clips/3.mp4"), val=str(tmp_path / "clips/0.mp4"), steps=3, test_share=0.2)
    assert [apart.count(split) for split in ("train", "val", "test")] == [12, 10, 3]
    assert [meta["file"] for _, meta in apart.episodes("val", range(10))] == ["0.mp4"] * 10
    last = [meta["first_frame"] for _, meta in parted.episodes("test", range(5))]
    assert last == [32, 36, 48, 52, 56]  # nothing after a test's clips is trained on


def test_pictures_are_squeezed_or_cropped_coloured_or_grey(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.mkv", 20))
    episodes = {}
    for crop in (False, True):
        source = video.VideoClips(path, steps=4, side=32, crop=crop, grey=crop)
        episodes[crop] = next(source.episodes("train", range(1)))[0].observations
    assert episodes[False].shape == (5, 3, 32, 32)
    assert episodes[True].shape == (5, 1, 32, 32)
    assert (episodes[False][0, 0, 0, [0, 4, 6, 25, 28]] == [0, 0, 30, 30, 0]).all()  # a sixth at each border is black
    assert (episodes[True][0, 0] == 30).all()


def test_a_camera_held_upright_gives_upright_pictures(tmp_path: Path) -> None:
    """A note in the file says that the picture is to be turned by 90 degrees, clockwise."""
    path = write(tmp_path / "a.mp4", 20, *FORMATS["b.mp4"])
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = np.array([0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(content)
    source = video.VideoClips(str(path), steps=1, crop=True)
    episode, _ = next(source.episodes("train", range(4, 5)))
    assert np.argwhere(episode.observations[0, 0, 8::16, 8::16] > 128).tolist() == [[3, 3]]  # bit 3, 8: top right


def test_what_cannot_be_cut_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.mp4").write_text("no video\n" * 100)
    write(tmp_path / "good.mp4", 30, *FORMATS["b.mp4"])
    write(tmp_path / "short.mkv", 9)
    write(tmp_path / "raw.h264", 30, *FORMATS["b.mp4"])
    write(tmp_path / "wrong.avi", 30, *FORMATS["b.mp4"])  # AVI does not know of B-frames
    damaged = bytearray(write(tmp_path / "damaged.mp4", 90, *FORMATS["b.mp4"]).read_bytes())
    start = damaged.index(b"mdat") + len(damaged) // 4
    damaged[start : start + 2000] = b"\xff" * 2000
    (tmp_path / "damaged.mp4").write_bytes(damaged)

    def refused(message: str, train: str, *more: object) -> None:
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            command(monkeypatch, tmp_path / "data", "--train", tmp_path / train, "--steps", 9, *more)
        assert not list((tmp_path / "data").rglob("*.tar"))

    refused("text.mp4 cannot be read as video: Invalid data", "*t.mp4")
    refused("no such files", "*.webm")
    refused("damaged.mp4 cannot be read as video: Invalid data", "damaged.mp4")
    refused("wrong.avi: frame [0-9]+ is damaged or not shown when the file says.*write it anew", "wrong.avi")
    refused("raw.h264 does not say when its frames are shown", "raw.h264")
    refused("no clips for train: the longest video has 9 frames, a clip spans 10", "short.mkv")
    refused("no clips for val", "short.mkv", "--steps", 8)
    refused("good.mp4 is in both splits. Without --val", "good.mp4", "--val", tmp_path / "g*.mp4")
    refused("val_share=1.0", "good.mp4", "--val-share", 1)
    refused("test_share=0.9", "good.mp4", "--test-share", 0.9)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").touch()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(SystemExit, match=r"error: videos need PyAV: pip install 'lightning_jepa\[video\]'"):
        command(monkeypatch, tmp_path / "data", "--train", tmp_path / "a.mp4")
