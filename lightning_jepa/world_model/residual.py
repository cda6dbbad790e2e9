"""A residual predictor: a small network says how the state changes.

Legend: T time, D state, A action.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_jepa.world_model.markov import last


class ResidualPredictor(nn.Module):
    """s[t+1] = s[t] + f(s[t], a[t]) (paper section 4.4). It starts as "nothing changes".

    Args:
        state_size: D.
        action_size: A.
        hidden: width of f.
        depth: hidden layers of f.
        normalise: end with a LayerNorm, for encoders that end in one.
    """

    history = 1

    def __init__(
        self, state_size: int, action_size: int, hidden: int = 512, depth: int = 2, normalise: bool = False
    ) -> None:
        super().__init__()
        self.state_size, self.action_size = state_size, action_size
        layers: list[nn.Module] = []
        before = state_size + action_size
        for _ in range(depth):
            layers += [nn.Linear(before, hidden), nn.ReLU()]
            before = hidden
        last = nn.Linear(before, state_size)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.change = nn.Sequential(*layers, last)
        self.norm = nn.LayerNorm(state_size) if normalise else nn.Identity()

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        """[..., T, D], [..., T, A] -> [..., D]."""
        s, a = last(s, a)
        following: Tensor = self.norm(s + self.change(torch.cat([s, a], -1)))
        return following
