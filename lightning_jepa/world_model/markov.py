"""What predictors that look at the present alone have in common.

Legend: T time, D state, A action.
"""

from __future__ import annotations

import torch
from torch import Tensor


def last(s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The last state and action, [..., T, D] and [..., T, A] -> [..., D] and [..., A], axes before being broadcast."""
    s, a = s[..., -1, :], a[..., -1, :]
    leading = torch.broadcast_shapes(s.shape[:-1], a.shape[:-1])
    return s.expand(*leading, -1), a.expand(*leading, -1)
