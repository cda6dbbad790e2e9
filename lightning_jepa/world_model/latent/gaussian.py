"""A prior p(z | s, a) of independent Gaussians, learned from the z that were found.

Legend: N transitions, D state, A action, Z latent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_jepa.layers import mlp


class GaussianPrior(nn.Module):
    """p(z | s, a) = N(mean, std^2), both told by a small network.

    Args:
        size: Z.
        state_size: D.
        action_size: A.
        hidden: width of the network.
    """

    def __init__(self, size: int, state_size: int, action_size: int, hidden: int = 128) -> None:
        super().__init__()
        self.size = size
        self.network = mlp(state_size + action_size, hidden, 2 * size, 1)

    def forward(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """[..., D], [..., A] -> mean and std [..., Z]."""
        mean, log_std = self.network(torch.cat([s, a], -1)).chunk(2, -1)
        return mean, log_std.clamp(-5, 3).exp()

    def surprise(self, z: Tensor, s: Tensor, a: Tensor) -> Tensor:
        """-log p(z | s, a), [N, Z] -> [N]."""
        mean, std = self(s, a)
        return (((z - mean) / std).square() / 2 + std.log() + math.log(2 * math.pi) / 2).sum(-1)

    def draw(self, s: Tensor, a: Tensor, uniform: Tensor) -> Tensor:
        """Z at quantiles [N, Z]."""
        mean, std = self(s, a)
        return mean + std * torch.special.ndtri(uniform.clamp(1e-4, 1 - 1e-4)).to(mean)

    def outcomes(self, s: Tensor, a: Tensor, count: int = 8) -> tuple[Tensor, Tensor]:
        """A few z [N, M, Z], at quantiles that fill the unit cube evenly, each as likely as another [N, M]."""
        cube = torch.quasirandom.SobolEngine(self.size, scramble=True, seed=0).draw(count).to(s)
        mean, std = self(s, a)
        z = mean[:, None] + std[:, None] * torch.special.ndtri(cube.clamp(1e-4, 1 - 1e-4))
        return z, s.new_full((len(s), count), 1 / count)
