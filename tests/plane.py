"""A small world whose dynamics are written down, for planners: a point in the plane, s[t+1] = s[t] + a[t].

With a wall, the room is a box and moves into |x| < 1 are not made, except through a door at y in (3, 5).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lightning_jepa.actor.planners.cem import CEM
from lightning_jepa.actor.planners.gradient import Gradient
from lightning_jepa.actor.planners.icem import ICEM
from lightning_jepa.actor.planners.mppi import MPPI
from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.protocols import Cost, Planner, WorldModel
from lightning_jepa.types import Modulation, Plan

SPACE: dict[str, Any] = {"action_size": 2, "action_bound": 1.0}
MAKE: dict[str, Callable[..., Planner]] = {
    "cem": partial(CEM, samples=64, iterations=4, elites=8, horizon=12, **SPACE),
    "icem": partial(ICEM, samples=64, iterations=4, elites=8, kept=4, horizon=12, **SPACE),
    "mppi": partial(MPPI, samples=64, iterations=4, horizon=12, **SPACE),
    "gradient": partial(Gradient, restarts=8, iterations=20, horizon=12, **SPACE),
}
STARTS = torch.tensor([[-6.0, -3.0], [-2.0, 5.0], [-8.0, 0.0], [-1.0, -1.0]])
GOALS = torch.tensor([[-2.0, 2.0], [-7.0, 1.0], [-1.5, 0.0], [-4.0, -3.0]])


class Plane(nn.Module):
    """A world model that also counts the steps it makes for each episode; `gain` is a parameter that stays 1."""

    def __init__(self, wall: bool = False) -> None:
        super().__init__()
        self.gain, self.wall, self.steps = nn.Parameter(torch.ones(())), wall, 0

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        return observations.flatten(2).float()

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        self.steps += actions.shape[1] * actions.shape[2]
        at, path = s[:, None].expand(-1, actions.shape[1], -1), []
        for action in actions.unbind(2):
            to = at + self.gain * action
            in_wall = (to[..., :1].abs() < 1) & ((to[..., 1:] - 4).abs() > 1)
            at = torch.where(in_wall, at, to).clamp(-6, 6) if self.wall else to
            path.append(at)
        return torch.stack(path, 2)


def plan(
    planner: Planner,
    s: Tensor = STARTS,
    goal: Tensor = GOALS,
    model: WorldModel | None = None,
    cost: Cost | None = None,
    start: Tensor | None = None,
    seed: int = 0,
) -> Plan:
    generator = Generator().manual_seed(seed)
    return planner.plan(s, model or Plane(), cost or GoalEnergy(), Modulation(goal), start, generator)
