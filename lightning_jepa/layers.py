"""The multilayer perceptron that several rooms use."""

from __future__ import annotations

from torch import nn


def mlp(inputs: int, hidden: int, outputs: int, depth: int = 2) -> nn.Sequential:
    """`depth` hidden layers with LayerNorm and SiLU, then a linear one."""
    layers: list[nn.Module] = []
    for size in [inputs] + [hidden] * (depth - 1):
        layers += [nn.Linear(size, hidden), nn.LayerNorm(hidden), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))
