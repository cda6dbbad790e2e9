"""How the pictures of an episode lie in a shard: raw, zstd (smaller while stored), or with loss as jpeg or video.

    raw    KEY.observations.npy      read in place, any frame alone
    zstd   KEY.observations.npy.zst  the same array in one zstd frame; unpacked once, into the cache
    jpeg   KEY.observations.jpgs     JPEG, 4:4:4, a file for each frame, one after the other; any frame alone
    video  KEY.observations.mp4      H.264, see film.py; smallest, and slowest to read

A jpgs member begins with F + 1 little-endian uint64, where each of its F frames starts and where the last one ends.
Legend: F frames of an episode, n frames asked for, C H W image.
"""

from __future__ import annotations

import io
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines import film

SUFFIXES = {"raw": "npy", "zstd": "npy.zst", "jpeg": "jpgs", "video": "mp4"}
DECODED = ("jpeg", "video")  # window by window; the others are copied as they lie
_QUALITY = 95
_COLOURS = {1: "GRAY", 3: "RGB"}


def check(encoding: str, channels: int) -> None:
    """Find out before anything is read or written whether an encoding can be used.

    Raises:
        ValueError: if it is unknown, its library is not installed, or it can't hold so many channels.
    """
    if encoding not in SUFFIXES:
        raise ValueError(f"encoding={encoding!r}: choose one of {list(SUFFIXES)}")
    if encoding == "zstd":
        _zstandard()
    if encoding in DECODED:
        _ = _simplejpeg() if encoding == "jpeg" else film.library()
        if channels not in _COLOURS:
            raise ValueError(
                f"encoding={encoding!r} holds pictures of 1 or 3 channels, not {channels}: choose raw or zstd"
            )


def npy(array: NDArray[Any]) -> bytes:
    """The bytes of a `.npy` file of version 1.0."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def encode(encoding: str, frames: NDArray[np.uint8]) -> bytes:
    """Frames uint8 [F, C, H, W] -> the content of the member."""
    match encoding:
        case "raw":
            return npy(frames)
        case "zstd":
            packed: bytes = _zstandard().ZstdCompressor(level=3).compress(npy(frames))
            return packed
        case "video":
            return film.encode(frames)
        case _:
            colours = _COLOURS[frames.shape[1]]
            pictures = [
                _simplejpeg().encode_jpeg(
                    np.ascontiguousarray(frame.transpose(1, 2, 0)), _QUALITY, colours, colorsubsampling="444"
                )
                for frame in frames
            ]
            table = 8 * (len(pictures) + 1)
            ends = np.cumsum([table, *map(len, pictures)]).astype("<u8")
            return b"".join([ends.tobytes(), *pictures])


def unpack(member: NDArray[np.uint8]) -> bytes:
    """The `.npy` file in a member of a zstd shard.

    Raises:
        ValueError: if it is damaged.
    """
    zstandard = _zstandard()
    try:
        unpacked: bytes = zstandard.ZstdDecompressor().decompress(member)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    return unpacked


def decode(encoding: str, member: NDArray[np.uint8], frames: range, out: NDArray[np.uint8]) -> None:
    """Some frames of a member in one of the `DECODED` encodings into out [n, C, H, W].

    Raises:
        ValueError: if they are damaged.
    """
    if encoding == "video":
        film.decode(member, frames, out)
        return
    count = int(member[:8].view("<u8")[0]) // 8 if len(member) >= 8 else 0
    if frames[-1] + 1 >= count or 8 * count > len(member):
        raise ValueError(f"no table of {frames[-1] + 1} frames")
    starts, content = member[: 8 * count].view("<u8").tolist(), member.data
    decompress, colours, shape = _simplejpeg().decode_jpeg, _COLOURS[out.shape[1]], (*out.shape[2:], out.shape[1])
    for row, frame in enumerate(frames):
        picture = decompress(content[starts[frame] : starts[frame + 1]], colours)
        if picture.shape != shape:
            raise ValueError(f"frame {frame} has {picture.shape[:2]} pixels, expected {out.shape[2:]}")
        out[row] = picture.transpose(2, 0, 1)


def _zstandard() -> ModuleType:
    try:
        import zstandard
    except ImportError as error:
        raise ValueError("encoding='zstd' needs zstandard: pip install 'lightning_jepa[encodings]'") from error
    return zstandard


def _simplejpeg() -> ModuleType:
    try:
        import simplejpeg
    except ImportError as error:
        raise ValueError("encoding='jpeg' needs simplejpeg: pip install 'lightning_jepa[encodings]'") from error
    module: ModuleType = simplejpeg
    return module
