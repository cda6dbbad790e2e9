"""Latent variables of each kind, and a world model as small as can be for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_jepa.world_model.latent.continuous import ContinuousLatent
from lightning_jepa.world_model.latent.discrete import DiscreteLatent
from lightning_jepa.world_model.latent.noisy import NoisyLatent
from lightning_jepa.world_model.latent.sparse import SparseLatent
from lightning_jepa.world_model.latent_jepa import LatentJEPA

D, A = 3, 2
KINDS: dict[str, Callable[[], Any]] = {
    "discrete": lambda: DiscreteLatent(4, D, A, strength=0.1),
    "continuous": lambda: ContinuousLatent(2, D, A, strength=0.1),
    "sparse": lambda: SparseLatent(5, D, A),
    "noisy": lambda: NoisyLatent(2, D, A),
}
LONG: dict[str, Callable[[], Any]] = {  # the same, where three states are known
    "discrete": lambda: DiscreteLatent(
        4, 3 * D, A, 0.1, hidden=8, memory_gb=4 * 5 * (D + A + 4) * 4 / 2**30
    ),  # it just fits
    "continuous": lambda: ContinuousLatent(2, 3 * D, A, strength=0.1),
    "sparse": lambda: SparseLatent(5, 3 * D, A),
    "noisy": lambda: NoisyLatent(2, 3 * D, A, next_size=D),
}


def spoilt() -> DiscreteLatent:
    """With weights that are no numbers."""
    latent = DiscreteLatent(4, D, A, strength=0.1)
    nn.init.constant_(latent.prior[-1].weight, torch.nan)
    return latent.eval()


class Identity(nn.Module):
    """States are what is seen."""

    state_size = D

    def forward(self, observations: Tensor) -> Tensor:
        return observations


class Shift(nn.Module):
    """s[t+1] = s[t] + W z[t], whatever is done."""

    history, state_size = 1, D

    def __init__(self, effect: Tensor) -> None:
        super().__init__()
        self.effect = nn.Parameter(effect)
        self.action_size = A + len(effect)

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        return s[..., -1, :] + a[..., -1, A:] @ self.effect


def world_model(latent: Any, predictor: Any = None) -> LatentJEPA:
    return LatentJEPA(latent, Identity(), predictor or Shift(torch.randn(latent.size, D)))


def transitions(count: int = 7, steps: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(count, D), torch.randn(count, steps, A), torch.randn(count, steps, D)
