"""What numbered families of layouts share: a field within border walls, and layouts that are held out.

Legend: B layouts.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOW, HIGH = 4, 60  # border walls, one pixel wide


def of_split(split: str, held_out: Tensor) -> Tensor:
    """Ids of "train" or "held_out" layouts, told which are held out, bool [all].

    Raises:
        ValueError: if there is no such split.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"split={split!r}: choose 'train' or 'held_out'")
    return torch.nonzero(held_out if split == "held_out" else ~held_out)[:, 0]


def boxes(*sides: tuple[Tensor | float, Tensor | float, Tensor | float, Tensor | float]) -> Tensor:
    """Boxes, each of x0, y0, x1, y1, numbers or [B] and not all of them numbers -> [B, boxes, 4]."""
    given = [side for box in sides for side in box]
    like = next(side for side in given if isinstance(side, Tensor))
    whole = [side if isinstance(side, Tensor) else torch.full_like(like, side) for side in given]
    return torch.stack(whole, -1).unflatten(-1, (len(sides), 4))


def enclosed(within: Tensor) -> Tensor:
    """Four border walls before the walls within, [B, K, 4] -> [B, 4 + K, 4]."""
    inner, outer = LOW - 0.5, HIGH + 0.5
    border = [
        (inner, inner, outer, LOW + 0.5),
        (inner, HIGH - 0.5, outer, outer),
        (inner, inner, LOW + 0.5, outer),
        (HIGH - 0.5, inner, outer, outer),
    ]
    return torch.cat([within.new_tensor(border).expand(len(within), -1, -1), within], 1)


def beside(x: Tensor, half: float) -> Tensor:
    """The field left and right of a column [B] that is 2 `half` wide: [B, 2, 4]."""
    low, high = LOW + 0.5, HIGH - 0.5
    return boxes((low, low, x - half, high), (x + half, low, high, high))
