"""Model-predictive path integral control.

Legend: B episodes, S candidates, H horizon, A action.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from lightning_jepa.actor.planners.shooting import Search, Shooting, check_counts, check_positive, warm_start
from lightning_jepa.protocols import Cost, WorldModel
from lightning_jepa.types import Modulation, Plan


class MPPI(Shooting):
    """Mode-2 by path integrals: the mean moves to the average of all candidates, weighted by exp(-F / temperature).

    F is first brought to the same scale in every episode: 0 at the best candidate and 1 at the average one, so that one
    temperature serves energies of any size. The noise keeps its spread over the iterations. The mean itself is the
    first candidate of every iteration, and the best sequence evaluated is the plan.

    Args:
        samples: candidates in each iteration.
        iterations: rounds of drawing and averaging.
        horizon, action_size, action_bound, spread, colour, memory_mb: see `Shooting`.
        temperature: how fast weights fall with the scaled energy; towards 0 only the best candidate counts.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        samples: int,
        iterations: int,
        horizon: int,
        action_size: int,
        action_bound: float,
        temperature: float = 0.1,
        spread: float = 1.0,
        colour: float = 2.0,
        memory_mb: float = 256.0,
    ) -> None:
        super().__init__(horizon, action_size, action_bound, spread, colour, memory_mb)
        check_counts(samples=samples, iterations=iterations)
        check_positive(temperature=temperature)
        self.samples, self.iterations, self.temperature = samples, iterations, temperature

    @torch.no_grad()
    def plan(
        self,
        s: Tensor,
        world_model: WorldModel,
        cost: Cost,
        modulation: Modulation,
        start: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Plan:
        """See `protocols.Planner`. Spends iterations * samples * horizon model steps for each episode."""
        search = Search(s, world_model, cost, modulation, self.memory_mb)
        mean = warm_start(start, s, self.horizon, self.action_size)
        for _ in range(self.iterations):
            noise = self.noise(self.samples, generator, s)
            candidates = self.around(mean, self.spread * self.action_bound, noise)
            excess = search.evaluate(candidates)
            excess = excess - excess.amin(1, keepdim=True)
            excess = excess / excess.mean(1, keepdim=True).clamp_min(1e-12)
            weights = torch.softmax(-excess / self.temperature, 1)
            mean = torch.einsum("bs,bsha->bha", weights, candidates)
        return search.plan()
