"""Pictures as a film in a shard: H.264 in mp4, for large pictures and long episodes, with loss.

A frame is found by decoding on from the last one before it that needs no others; there is one in every dozen.
Legend: F frames, n frames asked for, C H W image.
"""

from __future__ import annotations

import io
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

_RATE = 30  # frames a second, for whoever plays the file
# Whole frames often enough, none that need later ones, and one thread: the same pictures always give the same bytes.
# With x264's macroblock tree one film of small pictures in a hundred came out otherwise; without it none of 9000 did.
_OPTIONS = {"crf": "18", "g": "12", "bf": "0", "threads": "1", "preset": "medium", "mbtree": "0"}
_STORED = "yuv444p"  # colours at full resolution
_FORMATS = {1: "gray", 3: "rgb24"}  # of pictures, by channels


def encode(frames: NDArray[np.uint8]) -> bytes:
    """Frames uint8 [F, C, H, W] -> an mp4 file; C is 1 or 3."""
    av, file = library(), io.BytesIO()
    with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=_RATE, options=_OPTIONS)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[2:], _STORED
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for picture in frames:
            pixels = np.ascontiguousarray(picture.transpose(1, 2, 0)) if len(picture) == 3 else picture[0]
            frame = av.VideoFrame.from_ndarray(pixels, format=_FORMATS[len(picture)])
            container.mux(stream.encode(frame.reformat(format=_STORED)))
        container.mux(stream.encode())
    return file.getvalue()


def decode(member: NDArray[np.uint8], frames: range, out: NDArray[np.uint8]) -> None:
    """Some frames of a film into out [n, C, H, W].

    Raises:
        ValueError: if they are damaged.
    """
    av, row = library(), 0
    try:
        with av.open(io.BytesIO(member.tobytes())) as container:
            stream = container.streams.video[0]
            tick = 1 / (_RATE * stream.time_base)  # of the file's clock, from frame to frame
            container.seek(int(frames[0] * tick), stream=stream)
            for frame in container.decode(stream):
                if row < len(frames) and frame.pts == frames[row] * tick:
                    picture = frame.to_ndarray(format=_FORMATS[out.shape[1]])
                    out[row] = picture if out.shape[1] == 1 else picture.transpose(2, 0, 1)
                    row += 1
                if row == len(frames):
                    return
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"no film ({error})") from error
    raise ValueError(f"frame {frames[row]} is missing")


def library() -> ModuleType:
    """PyAV.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ValueError("videos need PyAV: pip install 'lightning_jepa[video]'") from error
    return av
