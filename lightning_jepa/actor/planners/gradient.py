"""Gradient-based planning.

Legend: B episodes, R restarts, H horizon, A action.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from lightning_jepa.actor.planners.shooting import (
    Search,
    Shooting,
    check_counts,
    check_positive,
    project,
    warm_start,
)
from lightning_jepa.protocols import Cost, WorldModel
from lightning_jepa.types import Modulation, Plan


class Gradient(Shooting):
    """Mode-2 as the paper draws it: dF/da flows back through cost and world model into the actions.

    Adam descends from several random sequences at once (one of them the warm start), each kept within the ball of
    allowed actions; the best sequence met on any way is the plan. Parameters keep their gradients as they were.

    Args:
        restarts: sequences that descend side by side.
        iterations: steps of Adam.
        horizon, action_size, action_bound, spread, colour: see `Shooting`.
        step_size: Adam's step, in units of `action_bound`.
        memory_mb: bound on the imagined states held at once (the graph behind them takes a multiple of it).

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        restarts: int,
        iterations: int,
        horizon: int,
        action_size: int,
        action_bound: float,
        step_size: float = 0.1,
        spread: float = 1.0,
        colour: float = 2.0,
        memory_mb: float = 64.0,
    ) -> None:
        super().__init__(horizon, action_size, action_bound, spread, colour, memory_mb)
        check_counts(restarts=restarts, iterations=iterations)
        check_positive(step_size=step_size)
        self.restarts, self.iterations, self.step_size = restarts, iterations, step_size

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
        """See `protocols.Planner`. Spends iterations * restarts * horizon model steps an episode, with backward."""
        search = Search(s, world_model, cost, modulation, self.memory_mb)
        noise = self.noise(self.restarts, generator, s)
        mean = warm_start(start, s, self.horizon, self.action_size)
        actions = self.around(mean, self.spread * self.action_bound, noise)
        optimizer = torch.optim.Adam([actions], lr=self.step_size * self.action_bound)
        for _ in range(self.iterations):
            actions.grad = search.gradient(actions)
            optimizer.step()
            actions.copy_(project(actions, self.action_bound))
        return search.plan()
