"""A latent variable of real numbers, inferred by descending the energy from several starts.

Legend: N transitions, Z latent, D state, A action, S starts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_jepa.world_model.latent.gaussian import GaussianLatent
from lightning_jepa.world_model.latent.inference import (
    Inferred,
    Predict,
    check_memory,
    descend,
    distance,
    random_starts,
)


class ContinuousLatent(GaussianLatent):
    """z of Z real numbers; R(z) = strength |z|^2.

    What limits its information is that it has few numbers (paper section 4.4, Fig. 12): with as many as the state and
    no R(z), any future has an energy of zero, and the energy collapses.

    Args:
        size: Z.
        state_size: D, numbers of what is known: a state, or as many as the predictor looks back on.
        action_size: A.
        strength: of R(z), in the unit of D; 0 for none.
        starts: S, from which z is inferred: 0, then random ones.
        steps: of each descent, in training.
        rate: of each step.
        spread: standard deviation of random starts.
        memory_gb: what the predictions from all starts may take at once.
        asked: steps where an energy is asked for, which has to be a minimum: after few, what can be explained looks
            as if it could not.

    Raises:
        ValueError: if a number is out of its range; where z is inferred, if those predictions would not fit.
    """

    def __init__(
        self,
        size: int,
        state_size: int,
        action_size: int,
        strength: float = 0.0,
        starts: int = 4,
        steps: int = 20,
        rate: float = 0.2,
        spread: float = 1.0,
        memory_gb: float = 8.0,
        asked: int = 200,
    ) -> None:
        if min(size, starts, steps, asked) < 1 or strength < 0 or not rate > 0 or not spread > 0:
            raise ValueError(
                f"size={size}, starts={starts}, steps={steps}, asked={asked}, strength={strength}, rate={rate}, "
                f"spread={spread}: give counts of at least 1, a strength of at least 0, a rate and a spread above 0"
            )
        super().__init__(size, state_size, action_size)
        self.strength, self.starts, self.steps, self.rate, self.spread = strength, starts, steps, rate, spread
        self.memory_gb, self.asked = memory_gb, asked

    def infer(self, predict: Predict, s: Tensor, a: Tensor, s_y: Tensor) -> Inferred:
        """By descent from several starts, the best of which counts."""
        count, aim = len(s), s_y.detach()
        what, mend = f"descending from {self.starts} starts", "lower latent.starts or data.batch_size"
        check_memory(what, s_y.numel() * self.starts, s_y, self.memory_gb, mend)

        def energy(z: Tensor) -> Tensor:
            return distance(aim[:, None], predict(z)) + self.regulariser(z)

        first = self.spread * random_starts(count, self.starts, self.size, s, self.training)
        first[:, 0] = 0
        found = descend(energy, first, self.steps if self.training else self.asked, self.rate)
        with torch.no_grad():
            best = energy(found).argmin(1)
        z = found[torch.arange(count, device=s.device), best]
        predicted = predict(z[:, None])[:, 0]
        error = distance(s_y, predicted)
        return Inferred(z, predicted, error, self.regulariser(z), error, {"prior": self.surprise(z, s, a)})

    def regulariser(self, z: Tensor) -> Tensor:
        """R(z), [..., Z] -> [...]."""
        return self.strength * z.square().sum(-1)
