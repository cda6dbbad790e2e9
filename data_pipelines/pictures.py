"""Pictures of any origin -> the layout of the shards: channels first, and squares of a side."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray
from PIL import Image


def is_picture(space: Any) -> bool:
    """Whether a Gymnasium space is one of pictures: uint8 [H, W], [H, W, C] or [C, H, W]."""
    return isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def channels_first(picture: NDArray[np.uint8], side: int | None = None) -> NDArray[np.uint8]:
    """uint8 [H, W], [H, W, C] or [C, H, W] -> [C, side, side], pixels the means of what they cover; None: unscaled."""
    if picture.ndim == 2:
        picture = picture[..., None]
    if picture.shape[2] > 4:  # channels come first
        picture = picture.transpose(1, 2, 0)
    if side is not None and picture.shape[:2] != (side, side):
        planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in picture.transpose(2, 0, 1)]
        scaled = [plane.resize((side, side), Image.Resampling.BOX) for plane in planes]
        picture = np.stack([np.asarray(plane) for plane in scaled], -1)
    return np.ascontiguousarray(picture.transpose(2, 0, 1))
