"""What latent variables of real numbers share: a prior p(z | s, a) of independent Gaussians, learned from found z.

Legend: N transitions, D state, A action, Z latent, M drawn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

from lightning_jepa.layers import mlp

FEW = 8  # z that a tree branches over


class GaussianLatent(nn.Module):
    """z of Z real numbers with p(z | s, a) = N(mean, std^2), both told by a small network; subclasses infer z.

    Args:
        size: Z.
        state_size: D, numbers of what is known.
        action_size: A.
        hidden: width of the network.

    Raises:
        ValueError: if there are more numbers than quantiles can be spread over.
    """

    def __init__(self, size: int, state_size: int, action_size: int, hidden: int = 128) -> None:
        super().__init__()
        if size > SobolEngine.MAXDIM:
            raise ValueError(
                f"latent.size={size}: give at most {SobolEngine.MAXDIM}, over which futures can be drawn evenly"
            )
        self.size = self.noise = size
        self.state_size, self.action_size = state_size, action_size
        self.network = mlp(state_size + action_size, hidden, 2 * size, 1)

    def prior(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """[..., D], [..., A] -> mean and std [..., Z]."""
        mean, log_std = self.network(torch.cat([s, a], -1)).chunk(2, -1)
        return mean, log_std.clamp(-5, 3).exp()

    def surprise(self, z: Tensor, s: Tensor, a: Tensor) -> Tensor:
        """-log p(z | s, a), [N, Z] -> [N]."""
        mean, std = self.prior(s, a)
        return (((z - mean) / std).square() / 2 + std.log() + math.log(2 * math.pi) / 2).sum(-1)

    def draw(self, s: Tensor, a: Tensor, uniform: Tensor) -> Tensor:
        """Z at quantiles [N, Z]."""
        mean, std = self.prior(s, a)
        return mean + std * normal(uniform).to(mean)

    def outcomes(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """A few z [N, M, Z], at quantiles that fill the unit cube evenly, each as likely as another [N, M]."""
        cube = SobolEngine(self.size, scramble=True, seed=0).draw(FEW).to(s)
        mean, std = self.prior(s, a)
        return mean[:, None] + std[:, None] * normal(cube), s.new_full((len(s), FEW), 1 / FEW)

    def likeliest(self, s: Tensor, a: Tensor) -> Tensor:
        """The mean, [N, D], [N, A] -> [N, Z]."""
        return self.prior(s, a)[0]


def normal(uniform: Tensor) -> Tensor:
    """Quantiles of the standard normal distribution; the rarest ones, which may be infinite, are cut."""
    return torch.special.ndtri(uniform.clamp(1e-4, 1 - 1e-4))
