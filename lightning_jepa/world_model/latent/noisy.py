"""A noisy latent variable: a network guesses z, and noise limits what the guess can tell (paper section 4.4, Fig. 12d).

Legend: N transitions, Z latent, D state, A action.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_jepa.layers import mlp
from lightning_jepa.world_model.latent.gaussian import GaussianLatent
from lightning_jepa.world_model.latent.inference import Inferred, Predict, descend, distance


class NoisyLatent(GaussianLatent):
    """Amortised inference z ~ q(z | s_x, a, s_y) = N(mean, std^2), with R = strength KL(q | p(z | s, a)).

    The regulariser bounds the information of z in nats, as in a variational autoencoder. In training z is drawn; when
    an energy is asked for, it is the mean, refined by descent, and pays for being less likely than the likeliest one:

        F(x, y) = min_z D(s_y, Pred(s_x, a, z)) + strength log(p(mean | s, a) / p(z | s, a))

    Args:
        size: Z.
        state_size: D, numbers of what is known: a state, or as many as the predictor looks back on.
        action_size: A.
        strength: of R, in the unit of D for each nat.
        refinement: steps of descent after the guess, where an energy is asked for.
        rate: of each step.
        hidden: width of the guessing network.
        next_size: of the state that follows, where it is not D.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        size: int,
        state_size: int,
        action_size: int,
        strength: float = 0.001,
        refinement: int = 5,
        rate: float = 0.1,
        hidden: int = 128,
        next_size: int | None = None,
    ) -> None:
        if size < 1 or refinement < 0 or not strength > 0 or not rate > 0:
            raise ValueError(
                f"size={size}, refinement={refinement}, strength={strength}, rate={rate}: give a size of at least 1, "
                f"refinement of at least 0, a strength and a rate above 0"
            )
        super().__init__(size, state_size, action_size)
        self.strength, self.refinement, self.rate = strength, refinement, rate
        self.guess = mlp(state_size + action_size + (next_size or state_size), hidden, 2 * size, 1)

    def infer(self, predict: Predict, s: Tensor, a: Tensor, s_y: Tensor) -> Inferred:
        """By a guess: drawn in training, refined otherwise."""
        mean, log_std = self.guess(torch.cat([s, a, s_y], -1)).chunk(2, -1)
        std = log_std.clamp(-5, 3).exp()
        expected, spread = self.prior(s, a)
        divergence = (spread / std).log() + (std.square() + (mean - expected).square()) / (2 * spread.square()) - 0.5
        information = self.strength * divergence.sum(-1)
        if self.training:
            z = mean + std * torch.randn_like(std)
            regulariser = information
        else:
            aim, middle, width = s_y.detach(), expected.detach(), spread.detach()

            def unlikely(z: Tensor) -> Tensor:
                return self.strength * ((z - middle) / width).square().sum(-1) / 2

            z = descend(
                lambda z: distance(aim, predict(z[:, None])[:, 0]) + unlikely(z), mean, self.refinement, self.rate
            )
            regulariser = unlikely(z)
        predicted = predict(z[:, None])[:, 0]
        error = distance(s_y, predicted)
        return Inferred(z.detach(), predicted, error, regulariser, error, {"information": information})
