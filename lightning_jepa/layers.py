"""What several rooms use: a multilayer perceptron, and copies that follow."""

from __future__ import annotations

import torch
from torch import nn


def mlp(inputs: int, hidden: int, outputs: int, depth: int = 2) -> nn.Sequential:
    """`depth` hidden layers with LayerNorm and SiLU, then a linear one."""
    layers: list[nn.Module] = []
    for size in [inputs] + [hidden] * (depth - 1):
        layers += [nn.Linear(size, hidden), nn.LayerNorm(hidden), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, share: float) -> None:
    """Move the weights of a copy towards those of what it is a copy of, by a share of the way."""
    for weight, ahead in zip(slow.parameters(), fast.parameters(), strict=True):
        weight.lerp_(ahead, share)
