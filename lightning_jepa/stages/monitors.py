"""What is watched while representations are trained, beside their spread: what can be read off them.

Legend: N samples, D state, F factors, G numbers that tell layouts apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric


class LinearProbe(Metric):
    """R2 of a ridge regression from frozen states to what the simulator knows, for a curve while training.

    Fitted on the samples of every second layout and scored on those of the others; NaN where there is one layout alone.
    The exam (`evaluation.probes`) is more thorough.

    Args:
        names: of the F factors.
        ridge: strength, relative to standardised features.
    """

    full_state_update = False
    states: list[Tensor]
    factors: list[Tensor]
    groups: list[Tensor]

    def __init__(self, names: Sequence[str], ridge: float = 1e-2) -> None:
        super().__init__()
        self.names, self.ridge = tuple(names), ridge
        for name in ("states", "factors", "groups"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, states: Tensor, factors: Tensor, groups: Tensor) -> None:
        """Add samples [N, D], their factors [N, F], and which layout each is from, any numbers [N, G]."""
        self.states.append(states.float())
        self.factors.append(factors.float())
        self.groups.append(groups)

    def compute(self) -> dict[str, Tensor]:
        """R2 of each factor."""
        x, y, group = (
            torch.cat(part) if isinstance(part, list) else part for part in (self.states, self.factors, self.groups)
        )
        # A column of zeros keeps this going where G is 0: all samples are then of one layout.
        held_out = F.pad(group, (0, 1)).unique(dim=0, return_inverse=True)[1] % 2 == 1
        if not held_out.any():
            return {name: torch.full((), torch.nan) for name in self.names}
        fit = x[~held_out]
        x = (x - fit.mean(0)) / (fit.std(0, correction=0) + 1e-6)
        centre = y[~held_out].mean(0)
        fit = x[~held_out]
        gram = fit.T @ fit / len(fit) + self.ridge * torch.eye(x.shape[1], device=x.device)
        weights = torch.linalg.solve(gram, fit.T @ (y[~held_out] - centre) / len(fit))
        error = (x[held_out] @ weights + centre - y[held_out]).square().mean(0)
        r2 = 1 - error / y[held_out].var(0, correction=0).clamp_min(1e-12)
        return dict(zip(self.names, r2.unbind(), strict=True))
