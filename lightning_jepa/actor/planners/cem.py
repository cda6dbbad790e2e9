"""The cross-entropy method.

Legend: B episodes, S candidates, E elites, H horizon, A action.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from lightning_jepa.actor.planners.shooting import Search, Shooting, check_counts, pick, warm_start
from lightning_jepa.protocols import Cost, WorldModel
from lightning_jepa.types import Modulation, Plan


class CEM(Shooting):
    """Mode-2 by the cross-entropy method: draw around a mean, refit mean and spread to the best, repeat.

    The mean itself is the first candidate of every iteration, and the best sequence evaluated is the plan.

    Args:
        samples: candidates in each iteration.
        iterations: rounds of drawing and refitting.
        elites: how many of the best candidates the next distribution is fitted to.
        horizon, action_size, action_bound, colour, memory_mb: see `Shooting`.
        spread: standard deviation of the first round, in units of `action_bound`.
        least_spread: no later round is narrower than this, in the same units.
        rest: whether to do nothing is a candidate of the first round: who has arrived would else have to move somehow.

    Raises:
        ValueError: if a number is out of its range, there are more elites than samples, or one sample alone to rest.
    """

    def __init__(
        self,
        samples: int,
        iterations: int,
        elites: int,
        horizon: int,
        action_size: int,
        action_bound: float,
        spread: float = 1.0,
        least_spread: float = 0.05,
        colour: float = 2.0,
        memory_mb: float = 256.0,
        rest: bool = False,
    ) -> None:
        super().__init__(horizon, action_size, action_bound, spread, colour, memory_mb)
        check_counts(samples=samples, iterations=iterations, elites=elites)
        if elites > samples:
            raise ValueError(f"planner.elites={elites}: expected at most planner.samples={samples}")
        if not 0 <= least_spread <= spread:
            raise ValueError(f"planner.least_spread={least_spread}: expected 0 to planner.spread={spread}")
        if rest and samples < 2:
            raise ValueError(f"planner.rest={rest}, planner.samples={samples}: expected 2 samples or more")
        self.samples, self.iterations, self.elites, self.least_spread = samples, iterations, elites, least_spread
        self.rest = rest

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
        std = torch.full_like(mean, self.spread * self.action_bound)
        for turn in range(self.iterations):
            candidates = self.around(mean, std, self.noise(self.samples, generator, s))
            if self.rest and turn == 0:
                candidates[:, 1] = 0
            best = search.evaluate(candidates).topk(self.elites, largest=False).indices
            elites = pick(candidates, best)
            mean = elites.mean(1)
            std = elites.std(1, correction=0).clamp_min(self.least_spread * self.action_bound)
        return search.plan()
