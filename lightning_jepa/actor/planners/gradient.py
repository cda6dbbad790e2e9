"""Gradient-based planning.

Legend: B episodes, R restarts, H horizon, A action.
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


class Gradient:
    """Mode-2 as the paper draws it: dF/da flows back through cost and world model into the actions.

    Adam descends from several random sequences at once (one of them the warm start), each kept within the ball of
    allowed actions; the best sequence met on any way is the plan. Parameters keep their gradients as they were.

    Args:
        restarts: sequences that descend side by side.
        iterations: steps of Adam.
        horizon: actions in a sequence.
        action_size: numbers in an action.
        action_bound: largest norm of an action.
        step_size: Adam's step, in units of `action_bound`.
        spread: standard deviation of the random restarts, in the same units.
        colour: temporal correlation of the restarts, see `coloured_noise`.
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
        check_counts(restarts=restarts, iterations=iterations, horizon=horizon, action_size=action_size)
        check_positive(action_bound=action_bound, step_size=step_size, spread=spread, memory_mb=memory_mb)
        check_colour(colour)
        self.restarts, self.iterations, self.horizon = restarts, iterations, horizon
        self.action_size, self.action_bound = action_size, action_bound
        self.step_size, self.spread, self.colour, self.memory_mb = step_size, spread, colour, memory_mb

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
        noise = coloured_noise(self.restarts, self.horizon, self.action_size, self.colour, generator, s)
        noise[0] = 0
        mean = warm_start(start, s, self.horizon, self.action_size)
        actions = project(mean[:, None] + self.spread * self.action_bound * noise, self.action_bound)
        optimizer = torch.optim.Adam([actions], lr=self.step_size * self.action_bound)
        for _ in range(self.iterations):
            actions.grad = search.gradient(actions)
            optimizer.step()
            actions.copy_(project(actions, self.action_bound))
        return search.plan()
