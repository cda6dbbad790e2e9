"""Video files -> shards: `python -m data_pipelines.sources.video data/street --train 'clips/*.mp4'`.

Passive observation, so no actions. A video is cut into clips of T + 1 frames, one after the other, each an episode; the
frames left at its end are too few for one and are dropped. Frames count in the order in which they are shown.
Legend: T steps of a clip, F frames of a video.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipelines import film
from data_pipelines.commands import run
from data_pipelines.pictures import channels_first
from data_pipelines.schema import Episode, Manifest, episode_of
from data_pipelines.source import SPLITS, add_options, files_of, pack_given

ANEW = "If players show it well, write it anew and use that: ffmpeg -i OLD -c:v libx264 -crf 12 NEW.mp4"


class VideoClips:
    """Clips of videos.

    Args:
        train: pattern of the files to train on.
        val: pattern of the files to validate on; without it, the last clips of each video of `train` are for that.
        val_share: of a video's clips, for validation; at least one, but never a video's only one.
        test_share: of a video's clips, its last, for an exam alone: "test".
        steps: T, of a clip.
        every: of so many frames one is taken.
        side: pixels along each side of a picture.
        crop: take the square in the middle of a frame; otherwise the whole of it is squeezed into a square.
        grey: one channel instead of three.

    Raises:
        ValueError: if a number is impossible, a file can't be read as video, or a split has no clips.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        val_share: float = 0.1,
        test_share: float = 0.0,
        steps: int = 39,
        every: int = 1,
        side: int = 64,
        crop: bool = False,
        grey: bool = False,
    ) -> None:
        if min(steps, every, side) < 1 or not 0 < val_share < 1 or not 0 <= test_share < 1 - val_share:
            raise ValueError(
                f"steps={steps}, every={every}, side={side}, val_share={val_share}, test_share={test_share}: give at "
                "least 1 of each, and shares above 0 that leave some clips to train on; none for a test is allowed"
            )
        self.steps, self.every, self.side, self.crop, self.grey = steps, every, side, crop, grey
        self.body_names, self.energy_names, self.truth_names = (), (), ()
        files = {"train": files_of("train", train), "val": [] if val is None else files_of("val", val)}
        if both := set(files["train"]) & set(files["val"]):
            raise ValueError(
                f"{min(both)} is in both splits. Without --val, the last part of each video is for validation"
            )
        frames = {path: len(_index(path).times) for split in SPLITS for path in files[split]}
        self.clips: dict[str, list[tuple[Path, range]]] = {split: [] for split in (*SPLITS, "test")}
        self.dropped = 0  # frames at the ends of videos
        for split in SPLITS:
            for path in files[split]:
                # The last clip needs no frames after its last one.
                clips = range((frames[path] + every - 1) // self._span)
                self.dropped += max(0, frames[path] - len(clips) * self._span)
                known = len(clips) - (round(test_share * len(clips)) if split == "train" else 0)
                held_out = 0 if val else min(max(1, round(val_share * len(clips))), max(0, known - 1))
                kept = known - held_out
                for part, some in ((split, clips[:kept]), ("val", clips[kept:known]), ("test", clips[known:])):
                    if some:
                        self.clips[part].append((path, some))
        for split in SPLITS:
            if not self.count(split):
                raise ValueError(
                    f"no clips for {split}: the longest video has {max(frames.values())} frames, a clip spans "
                    f"{steps * every + 1}, and without --val each video needs two. Give longer videos, fewer steps, or "
                    "files with --val"
                )
        shown = {split: [[path.name, frames[path]] for path in files[split]] for split in SPLITS}
        names = ("steps", "every", "side", "crop", "grey")
        numbers = {name: getattr(self, name) for name in names}
        shares = {"val_share": None if val else val_share, "test_share": test_share}
        self.settings = {"source": "video", "files": shown, **shares, **numbers}

    @property
    def _span(self) -> int:
        """Frames of a video from the beginning of a clip to that of the next one."""
        return (self.steps + 1) * self.every

    def count(self, split: str) -> int:
        """How many episodes a split has."""
        return sum(len(clips) for _, clips in self.clips[split])

    def episodes(self, split: str, numbers: range) -> Iterator[tuple[Episode, dict[str, Any]]]:
        """The episodes of these numbers; a video is decoded from the first of its clips on, straight to the last."""
        begin = 0
        for path, all_clips in self.clips[split]:
            clips = all_clips[max(0, numbers.start - begin) : max(0, numbers.stop - begin)]
            begin += len(all_clips)
            if clips:
                yield from self._clips(path, clips)

    def _clips(self, path: Path, clips: range) -> Iterator[tuple[Episode, dict[str, Any]]]:
        frames = _frames(path, range(clips.start * self._span, clips.stop * self._span, self.every))
        seconds, rate = _index(path).clock()
        for clip in clips:
            pictures = np.stack([self._picture(frame) for frame in islice(frames, self.steps + 1)])
            first = clip * self._span
            meta = {
                "file": path.name,
                "first_frame": first,
                "every": self.every,
                "seconds": float(seconds[first]),
                "frames_per_second": rate,  # of the video
            }
            yield episode_of(pictures), meta

    def _picture(self, frame: Any) -> NDArray[np.uint8]:
        """uint8 [C, side, side]."""
        image = Image.fromarray(frame.to_ndarray(format="gray" if self.grey else "rgb24"))
        if frame.rotation:  # of a camera that was held upright
            image = image.rotate(frame.rotation, expand=True)
        width, height = image.size
        x, y = ((length - min(width, height)) / 2 if self.crop else 0 for length in (width, height))
        scaled = image.resize((self.side, self.side), Image.Resampling.BOX, box=(x, y, width - x, height - y))
        return channels_first(np.asarray(scaled))


class _Index(NamedTuple):
    """When the frames of a video are shown, in its own unit of time."""

    times: NDArray[np.int64]  # [F], increasing
    keys: NDArray[np.int64]  # of the frames that can be decoded without others, increasing
    unit: float  # seconds

    def clock(self) -> tuple[NDArray[np.float64], float | None]:
        """When each frame is shown, seconds since the first; frames per second on average."""
        seconds = (self.times - self.times[0]) * self.unit
        return seconds, round((len(seconds) - 1) / float(seconds[-1]), 6) if len(seconds) > 1 else None


@cache
def _index(path: Path) -> _Index:
    """From the packets, which is a hundred times as fast as decoding; the number in a file's header is often wrong.

    Each frame that is decoded is compared with it, so that a packet without a frame is an error, not a shift in time.
    """
    with _video(path) as (container, stream):
        packets = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
        shown = [(packet.pts, packet.is_keyframe) for packet in packets]  # not the packets: they hold the whole file
        unit = float(stream.time_base)
    if not shown or any(time is None for time, _ in shown):
        raise ValueError(f"{path} does not say when its frames are shown. {ANEW}")
    times = np.array(sorted(time for time, _ in shown), np.int64)
    keys = np.array(sorted(time for time, key in shown if key), np.int64)
    if (np.diff(times) <= 0).any():
        raise ValueError(f"{path} shows several frames at the same time. {ANEW}")
    return _Index(times, keys, unit)


def _frames(path: Path, numbers: range) -> Iterator[Any]:
    """Decoded frames of these numbers.

    Raises:
        ValueError: if one can't be had as the file says.
    """
    times, keys, _ = _index(path)
    first = expected = numbers.start
    # Some containers seek too far, so that another try begins earlier, and the last one with the file.
    for key in [*keys[1:][keys[1:] <= times[first]][:-3:-1].tolist(), None]:
        with _video(path) as (container, stream):
            stream.thread_type = "AUTO"
            if key is not None:
                container.seek(key, stream=stream)
            for frame in dropwhile(lambda frame: (frame.pts or 0) < times[first], container.decode(stream)):
                if frame.pts != times[expected] or frame.is_corrupt:
                    break
                if expected in numbers:
                    yield frame
                expected += 1
                if expected > numbers[-1]:
                    return
        if expected > first:
            break
    raise ValueError(f"{path}: frame {expected} is damaged or not shown when the file says. {ANEW}")


@contextmanager
def _video(path: Path) -> Iterator[tuple[Any, Any]]:
    """A file's container and its first video stream."""
    av = film.library()
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise ValueError(f"{path} holds no video")
            yield container, container.streams.video[0]
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as video: {error.strerror}") from error


def video(given: argparse.Namespace) -> dict[str, Manifest]:
    """Pack both splits."""
    names = ("train", "val", "val_share", "test_share", "steps", "every", "side", "crop", "grey")
    source = VideoClips(**{name: getattr(given, name) for name in names})
    counts = ", ".join(f"{source.count(split)} for {split}" for split in SPLITS)
    print(f"clips: {counts}; {source.dropped} frames at the ends of videos are too few for one and dropped")
    return pack_given(source, given)


def main() -> None:
    """The command line."""
    show = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.sources.video",
        description="Videos into shards, clip by clip.",
        formatter_class=show,
    )
    add_options(parser)
    parser.add_argument("--train", required=True, metavar="PATTERN", help="files to train on, such as 'clips/**/*.mp4'")
    parser.add_argument("--val", metavar="PATTERN", help="files to validate on; without it, the end of each of --train")
    parser.add_argument(
        "--val-share", type=float, default=0.1, metavar="SHARE", help="of a video's clips, without --val"
    )
    parser.add_argument(
        "--test-share", type=float, default=0.0, metavar="SHARE", help="of a video's clips, its last, to leave out"
    )
    parser.add_argument("--steps", type=int, default=39, metavar="N", help="of a clip, which has a frame more")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take each N-th frame")
    parser.add_argument("--side", type=int, default=64, metavar="PIXELS", help="of a picture")
    parser.add_argument(
        "--crop", action="store_true", help="the square in the middle, instead of squeezing all of a frame"
    )
    parser.add_argument("--grey", action="store_true", help="one channel")
    run(video, parser)


if __name__ == "__main__":
    main()
