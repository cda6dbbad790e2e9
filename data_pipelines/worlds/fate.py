"""Chance as a part of the exact state: the same state and action always lead to the same place."""

from __future__ import annotations

from torch import Tensor

FATES = 2**23  # numbers that a float32 holds exactly


def next_fate(fate: Tensor) -> Tensor:
    """The next number of a linear congruential generator with this period; whole numbers kept as floats."""
    return ((fate.long() * 1_664_525 + 1_013_904_223) % FATES).to(fate.dtype)
