"""Weights of the intrinsic cost, drawn at random, so that what is learned holds for all that may be asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from lightning_jepa.cost.intrinsic import IntrinsicCost


class UniformWeights:
    """u_k uniform between a least and a largest value for each term.

    Args:
        ranges: term -> [least, largest].

    Raises:
        ValueError: if a range is not of two numbers, 0 <= least <= largest.
    """

    def __init__(self, ranges: Mapping[str, Sequence[float]]) -> None:
        for name, pair in ranges.items():
            if len(pair) != 2 or not 0 <= pair[0] <= pair[1]:
                raise ValueError(f"u.{name}={list(pair)}: give [least, largest] with 0 <= least <= largest")
        self.ranges = {name: (float(low), float(high)) for name, (low, high) in ranges.items()}

    def check(self, intrinsic: IntrinsicCost) -> None:
        """Compare with the terms that there are.

        Raises:
            ValueError: if a term has no range, or a range no term.
        """
        if tuple(self.ranges) != intrinsic.names:
            raise ValueError(
                f"u has ranges for {list(self.ranges)}, the intrinsic cost has the terms {list(intrinsic.names)}: "
                "name exactly these, in this order"
            )

    def __call__(self, count: int, generator: Generator) -> Tensor:
        """[count, K]."""
        low, high = torch.tensor(list(self.ranges.values())).unbind(-1)
        return low + (high - low) * torch.rand(count, len(low), generator=generator)
