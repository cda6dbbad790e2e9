"""Whether states have collapsed.

Statistics are sums over samples, so that they add up over batches and over ranks; they are taken before any
normalisation, which would hide a collapse.

Legend: N samples, D state.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Spread(Metric):
    """How many directions of state space are used: effective rank and smallest standard deviation.

    The effective rank is exp(entropy of the eigenvalues of the covariance, as shares of their sum), between 1 (collapse
    to a line) and D. Collapse to a point shows in `smallest_std`, and in `largest_std` when all of the state is dead.
    States that are not finite make all of them NaN.

    Args:
        state_size: D.
    """

    full_state_update = False
    count: Tensor
    total: Tensor
    products: Tensor

    def __init__(self, state_size: int) -> None:
        super().__init__()
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(state_size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(state_size, state_size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, states: Tensor) -> None:
        """Add samples [N, D]."""
        states = states.double()
        self.count += len(states)
        self.total += states.sum(0)
        self.products += states.T @ states

    def compute(self) -> dict[str, Tensor]:
        """The measures of all samples so far."""
        mean = self.total / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        if not covariance.isfinite().all():  # eigenvalues would fail where the alarm should speak
            nan = mean.new_full((), torch.nan).float()
            return {"effective_rank": nan, "smallest_std": nan, "largest_std": nan}
        std = covariance.diagonal().clamp_min(0).sqrt()
        share = torch.linalg.eigvalsh(covariance).clamp_min(0)
        share = share / share.sum().clamp_min(1e-12)
        rank = torch.exp(-torch.xlogy(share, share).sum())
        return {"effective_rank": rank.float(), "smallest_std": std.min().float(), "largest_std": std.max().float()}
