"""The improved cross-entropy method (iCEM, Pinneri et al., 2020).

Legend: B episodes, S candidates, E elites, H horizon, A action.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from lightning_jepa.actor.planners.shooting import Search, Shooting, check_counts, pick, warm_start
from lightning_jepa.protocols import Cost, WorldModel
from lightning_jepa.types import Modulation, Plan


class ICEM(Shooting):
    """Mode-2 by iCEM: CEM with coloured noise, fewer candidates each round, and elites that stay in the race.

    Elites are kept with their energy, so staying costs no model steps. From one plan to the next, what is kept is the
    warm start: the best sequence, shifted by the actions already taken.

    Args:
        samples: candidates in the first iteration.
        iterations: rounds of drawing and refitting.
        elites: how many of the best candidates the next distribution is fitted to.
        kept: how many elites compete again in the next iteration.
        decay: each iteration draws this many times fewer candidates than the one before (never below 2 * elites).
        momentum: share of the old mean and spread that survives a refit.
        horizon, action_size, action_bound, colour, memory_mb: see `Shooting`.
        spread: standard deviation of the first round, in units of `action_bound`.

    Raises:
        ValueError: if a number is out of its range, or there are more elites than samples or more kept than elites.
    """

    def __init__(
        self,
        samples: int,
        iterations: int,
        elites: int,
        kept: int,
        horizon: int,
        action_size: int,
        action_bound: float,
        decay: float = 1.25,
        momentum: float = 0.1,
        spread: float = 1.0,
        colour: float = 2.0,
        memory_mb: float = 256.0,
    ) -> None:
        super().__init__(horizon, action_size, action_bound, spread, colour, memory_mb)
        check_counts(samples=samples, iterations=iterations, elites=elites)
        if not 0 <= kept <= elites <= samples:
            raise ValueError(
                f"planner.kept={kept}, planner.elites={elites}, planner.samples={samples}: "
                "expected 0 <= kept <= elites <= samples"
            )
        if decay < 1 or not 0 <= momentum < 1:
            raise ValueError(
                f"planner.decay={decay}, planner.momentum={momentum}: expected decay >= 1 and momentum in [0, 1)"
            )
        self.samples, self.iterations, self.elites, self.kept = samples, iterations, elites, kept
        self.decay, self.momentum = decay, momentum

    def drawn(self, iteration: int) -> int:
        """How many candidates an iteration draws and evaluates."""
        fewer = math.ceil(self.samples * self.decay**-iteration)
        return min(self.samples, max(fewer, 2 * self.elites))

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
        """See `protocols.Planner`. Spends the sum of `drawn` over iterations, times horizon, model steps an episode."""
        search = Search(s, world_model, cost, modulation, self.memory_mb)
        mean = warm_start(start, s, self.horizon, self.action_size)
        std = torch.full_like(mean, self.spread * self.action_bound)
        candidates, total = mean[:, None][:, :0], mean.new_zeros(len(s), 0)
        for iteration in range(self.iterations):
            fresh = self.around(mean, std, self.noise(self.drawn(iteration), generator, s))
            candidates = torch.cat([fresh, candidates], 1)
            total = torch.cat([search.evaluate(fresh), total], 1)
            total, best = total.topk(self.elites, largest=False)
            elites = pick(candidates, best)
            mean = torch.lerp(elites.mean(1), mean, self.momentum)
            std = torch.lerp(elites.std(1, correction=0), std, self.momentum)
            candidates, total = elites[:, : self.kept], total[:, : self.kept]
        return search.plan()
