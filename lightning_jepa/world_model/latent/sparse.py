"""A sparse latent variable, inferred by iterative shrinkage (FISTA, Beck and Teboulle 2009).

Legend: N transitions, Z latent, D state, A action.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_jepa.world_model.latent.gaussian import GaussianLatent
from lightning_jepa.world_model.latent.inference import Inferred, Predict, distance, random_starts


class SparseLatent(GaussianLatent):
    """z of many numbers, few of which are not zero: R(z) = strength |z|_1 (paper section 4.4, Fig. 12c).

    FISTA: a gradient step on the distance, then each number is drawn to zero by the rate times the strength, with
    momentum. Where a step would raise the energy it is not taken: momentum starts anew, and if there was none, the rate
    is halved; so more steps never lead to more energy, whatever the predictor.

    The predictor's weights could grow while z shrinks, which would make R(z) worth nothing; so z is held in [-1, 1],
    and a code that is on is worth about the strength.

    Args:
        size: Z.
        state_size: D, numbers of what is known: a state, or as many as the predictor looks back on.
        action_size: A.
        strength: of R(z), in the unit of D.
        steps: of the inference, in training.
        rate: of the first step.
        asked: steps where an energy is asked for, which has to be a minimum.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        size: int,
        state_size: int,
        action_size: int,
        strength: float = 0.02,
        steps: int = 20,
        rate: float = 1.0,
        asked: int = 200,
    ) -> None:
        if min(size, steps, asked) < 1 or not strength > 0 or not rate > 0:
            raise ValueError(
                f"size={size}, steps={steps}, asked={asked}, strength={strength}, rate={rate}: give counts of at least "
                f"1, and a strength and a rate above 0"
            )
        super().__init__(size, state_size, action_size)
        self.strength, self.steps, self.rate, self.asked = strength, steps, rate, asked

    def infer(self, predict: Predict, s: Tensor, a: Tensor, s_y: Tensor) -> Inferred:
        """By FISTA from a small random z: at 0 itself a network may have no slope to tell codes apart."""
        aim = s_y.detach()

        def error_at(z: Tensor) -> Tensor:
            return distance(aim, predict(z[:, None])[:, 0])

        z = 0.1 * random_starts(len(s), 1, self.size, s, self.training)[:, 0]
        with torch.no_grad():
            least = (error_at(z) + self.regulariser(z))[:, None]
        ahead, momentum = z, torch.ones_like(least)
        rate = torch.full_like(least, self.rate)
        for _ in range(self.steps if self.training else self.asked):
            with torch.enable_grad():
                ahead = ahead.detach().requires_grad_()
                (slope,) = torch.autograd.grad(error_at(ahead).sum(), ahead)
            moved = ahead.detach() - rate * slope
            shrunk = (moved.sign() * (moved.abs() - rate * self.strength).clamp_min(0)).clamp(-1, 1)
            with torch.no_grad():
                now = (error_at(shrunk) + self.regulariser(shrunk))[:, None]
            lower = now <= least
            following = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
            ahead = torch.where(lower, shrunk + (momentum - 1) / following * (shrunk - z), z)
            rate = torch.where(lower | (momentum > 1), rate, rate / 2)
            momentum = torch.where(lower, following, 1.0)
            z, least = torch.where(lower, shrunk, z), torch.where(lower, now, least)
        predicted = predict(z[:, None])[:, 0]
        error = distance(s_y, predicted)
        return Inferred(z, predicted, error, self.regulariser(z), error, {"prior": self.surprise(z, s, a)})

    def regulariser(self, z: Tensor) -> Tensor:
        """R(z), [..., Z] -> [...]."""
        return self.strength * z.abs().sum(-1)
