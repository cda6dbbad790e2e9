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
    momentum. The predictor's weights could grow while z shrinks, which would make R(z) worth nothing; so z is held in
    [-1, 1], and a code that is on is worth about the strength.

    Args:
        size: Z.
        state_size: D, numbers of what is known: a state, or as many as the predictor looks back on.
        action_size: A.
        strength: of R(z), in the unit of D.
        steps: of the inference.
        rate: of each step; a fraction of the inverse of the distance's largest curvature converges.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self, size: int, state_size: int, action_size: int, strength: float = 0.02, steps: int = 20, rate: float = 1.0
    ) -> None:
        if min(size, steps) < 1 or not strength > 0 or not rate > 0:
            raise ValueError(
                f"size={size}, steps={steps}, strength={strength}, rate={rate}: give counts of at least 1, and a "
                f"strength and a rate above 0"
            )
        super().__init__(size, state_size, action_size)
        self.strength, self.steps, self.rate = strength, steps, rate

    def infer(self, predict: Predict, s: Tensor, a: Tensor, s_y: Tensor) -> Inferred:
        """By FISTA from a small random z: at 0 itself a network may have no slope to tell codes apart."""
        aim = s_y.detach()
        with torch.enable_grad():
            z = 0.1 * random_starts(len(s), 1, self.size, s, self.training)[:, 0]
            ahead, momentum = z, 1.0
            for _ in range(self.steps):
                ahead = ahead.detach().requires_grad_()
                (slope,) = torch.autograd.grad(distance(aim, predict(ahead[:, None])[:, 0]).sum(), ahead)
                moved = ahead.detach() - self.rate * slope
                shrunk = (moved.sign() * (moved.abs() - self.rate * self.strength).clamp_min(0)).clamp(-1, 1)
                following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
                ahead, z, momentum = shrunk + (momentum - 1) / following * (shrunk - z), shrunk, following
        predicted = predict(z[:, None])[:, 0]
        error = distance(s_y, predicted)
        regulariser = self.strength * z.abs().sum(-1)
        return Inferred(z, predicted, error, regulariser, error, {"prior": self.surprise(z, s, a)})
