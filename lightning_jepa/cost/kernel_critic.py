"""A critic without weights: what followed on similar states, as remembered.

Legend: B episodes, S candidates, N slots of the memory, D state, K intrinsic terms.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_jepa.protocols import Memory
from lightning_jepa.types import Modulation


class KernelCritic(nn.Module):
    """TC(s) = sum_i k(s, s_i) u . IC(s[i + delta]) / (prior + sum_i k(s, s_i)) over remembered moments i.

    The simplest critic of the paper (section 3.3) without training: the intrinsic energy delta steps later, read from
    memory by similarity. One event is enough to change it, and only where states are similar.

    Args:
        memory: of as many rows as there are episodes.
        metric: from states [..., D] to the space in which similarity is measured.
        delta: steps ahead.
        bandwidth: of the kernel, in the metric's unit.
        prior: how much similarity stands for "nothing happened" where little is remembered.
    """

    def __init__(
        self,
        memory: Memory,
        metric: Callable[[Tensor], Tensor],
        delta: int = 1,
        bandwidth: float = 1.0,
        prior: float = 0.1,
    ) -> None:
        super().__init__()
        if not bandwidth > 0 or not prior > 0:
            raise ValueError(f"bandwidth={bandwidth}, prior={prior}: give numbers above 0")
        self.memory, self.metric = memory, metric
        self.delta, self.bandwidth, self.prior = delta, bandwidth, prior

    @torch.no_grad()
    def _followed(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """For each slot u . IC delta steps later, and whether that is known: [B, N] each."""
        rows, early, late = self.memory.pairs(self.delta)
        energy = u.new_zeros(len(u), self.memory.capacity)
        known = torch.zeros_like(energy)
        energy[rows, early] = (self.memory.energies[rows, late] * u[rows]).sum(-1)
        known[rows, early] = 1
        return energy, known

    def forward(self, states: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, D] -> [B, S]."""
        u = modulation.u
        if u is None:
            u = self.memory.energies.new_ones(len(states), self.memory.energies.shape[-1])
        energy, known = self._followed(u)
        similar = self.memory.kernel(states, self.metric, self.bandwidth) * known[:, None]
        return (similar @ energy[..., None])[..., 0] / (self.prior + similar.sum(-1))
