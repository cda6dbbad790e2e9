"""From below: what cannot be cheaper, whatever is done (for `TreeSearch`, paper sections 3.1.2 and 4.7).

Legend: N states, D state, M numbers of the metric space.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_jepa.cost.goal import GoalEnergy


class SpeedBound:
    """A step leads no further than the latent speed, so the goal's energy can't fall faster: an admissible bound.

        sum over t = 1 .. n of discount^(t - 1) weight IC(max(0, d - t speed)),   d = |f(s) - f(goal)|

    It holds for a cost that has the same energy, with that weight at least, and whose other terms, what a critic
    expects included, are not below zero; a search that finds otherwise says so.

    Args:
        energy: IC, of the goal, with its metric f.
        speed: largest distance of two successive states in the metric.
        weight: u of the goal's energy.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(self, energy: GoalEnergy, speed: float, weight: float = 1.0) -> None:
        if not speed > 0 or weight < 0:
            raise ValueError(f"speed={speed}, weight={weight}: give a speed above 0, and a weight of at least 0")
        self.energy, self.speed, self.weight = energy, speed, weight

    @torch.no_grad()
    def __call__(self, states: Tensor, goals: Tensor, left: int, discount: float) -> Tensor:
        """States [N, D], their goals [N, D], n steps left and the discount of cost -> [N]."""
        apart = self.energy.metric(states) - self.energy.metric(goals)
        steps = torch.arange(1, left + 1, device=states.device)
        nearest = (apart.norm(dim=-1, keepdim=True) - steps * self.speed).clamp_min(0)
        prices = self.energy.at(nearest.square(), apart.shape[-1])
        return self.weight * (prices * discount ** (steps - 1)).sum(-1)
