"""Model-predictive path integral control.

Legend: B episodes, S candidates, H horizon, A action.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from lightning_jepa.actor.planners.shooting import (
    Search,
    check_colour,
    check_counts,
    check_positive,
    coloured_noise,
    project,
    warm_start,
)
from lightning_jepa.protocols import Cost, WorldModel
from lightning_jepa.types import Modulation, Plan


class MPPI:
    """Mode-2 by path integrals: the mean moves to the average of all candidates, weighted by exp(-F / temperature).

    F is first brought to the same scale in every episode: 0 at the best candidate and 1 at the average one, so that one
    temperature serves energies of any size. The noise keeps its spread over the iterations. The mean itself is the
    first candidate of every iteration, and the best sequence evaluated is the plan.

    Args:
        samples: candidates in each iteration.
        iterations: rounds of drawing and averaging.
        horizon: actions in a candidate.
        action_size: numbers in an action.
        action_bound: largest norm of an action.
        temperature: how fast weights fall with the scaled energy; towards 0 only the best candidate counts.
        spread: standard deviation of the noise, in units of `action_bound`.
        colour: temporal correlation of the noise, see `coloured_noise`.
        memory_mb: bound on the imagined states held at once.

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
        check_counts(samples=samples, iterations=iterations, horizon=horizon, action_size=action_size)
        check_positive(action_bound=action_bound, temperature=temperature, spread=spread, memory_mb=memory_mb)
        check_colour(colour)
        self.samples, self.iterations, self.horizon = samples, iterations, horizon
        self.action_size, self.action_bound = action_size, action_bound
        self.temperature, self.spread, self.colour, self.memory_mb = temperature, spread, colour, memory_mb

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
            noise = coloured_noise(self.samples, self.horizon, self.action_size, self.colour, generator, s)
            noise[0] = 0
            noise = noise * self.spread * self.action_bound
            candidates = project(mean[:, None] + noise, self.action_bound)
            excess = search.evaluate(candidates)
            excess = excess - excess.amin(1, keepdim=True)
            excess = excess / excess.mean(1, keepdim=True).clamp_min(1e-12)
            weights = torch.softmax(-excess / self.temperature, 1)
            mean = torch.einsum("bs,bsha->bha", weights, candidates)
        return search.plan()
