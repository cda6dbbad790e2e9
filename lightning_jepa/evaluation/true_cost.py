"""The true cost to go in a world with hazards, by dynamic programming on a grid of places: what a critic should say.

Legend: B episodes, N nodes, K moves, h w grid nodes (y, x).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_jepa.evaluation.fields import Field, filled, grid
from lightning_jepa.evaluation.world import HazardWorld
from lightning_jepa.types import Tasks

DIRECTIONS = 24
SWEEPS = 100  # more steps than any way takes


@torch.no_grad()
def cost_to_go(
    world: HazardWorld, tasks: Tasks, u_goal: float, u_pain: float, discount: float, width: float, pitch: float = 0.5
) -> Field:
    """V(x) = min over moves of c(x') + gamma V(x'),  c = u_goal (1 - exp(-|x - goal|^2 / 2 width^2)) + u_pain pain(x).

    Moves are full steps in 24 directions and none at all, under true contact; where one ends between the nodes, the
    nearest one stands for the place.

    Args:
        world: is reset.
        tasks: layouts and goals; starts are not looked at.
        u_goal, u_pain: weights of the two terms.
        discount: gamma.
        width: of the goal's energy, px.
        pitch: distance of the nodes, px.

    Returns:
        K = 1.
    """
    nodes, (h, w), free = grid(world, tasks.layouts, pitch)
    angles = 2 * math.pi * torch.arange(DIRECTIONS, device=nodes.device) / DIRECTIONS
    full = world.action_bound * torch.stack([angles.cos(), angles.sin()], -1)
    moves = torch.cat([torch.zeros_like(full[:1]), full])
    count, episodes = len(nodes), len(tasks.layouts)
    everywhere = nodes.expand(episodes, -1, -1)
    successor = torch.empty(episodes, count, len(moves), dtype=torch.long, device=nodes.device)
    for move, action in enumerate(moves):
        reached = world.advance(everywhere, action.expand_as(everywhere))
        x, y = ((reached - nodes[0]) / pitch).round().long().unbind(-1)
        successor[..., move] = y.clamp(0, h - 1) * w + x.clamp(0, w - 1)
    away = (everywhere - tasks.goals.to(nodes)[:, None]).square().sum(-1)
    cost = u_goal * (1 - torch.exp(-away / (2 * width**2))) + u_pain * world.share_in(everywhere, world.hazards)
    cost = cost.masked_fill(~free, torch.inf)
    to_go = torch.zeros_like(cost)
    rows = torch.arange(episodes, device=nodes.device)[:, None, None]
    for _ in range(SWEEPS):
        to_go = (cost + discount * to_go)[rows, successor].amin(-1)
    shape = (episodes, 1, h, w)
    known = free & to_go.isfinite()
    values = torch.where(known, to_go, torch.zeros_like(to_go)).view(shape)
    return Field(filled(values, known.view(episodes, h, w)), known.view(episodes, h, w), nodes[0], pitch)


class CarefulExpert:
    """Descends the true cost to go: the ceiling of what can be had under the weights (an exam's `Policy`)."""

    evaluations = 0

    def __init__(self, u_goal: float, u_pain: float, discount: float, width: float) -> None:
        self.settings = (u_goal, u_pain, discount, width)

    def reset(self, world: Any, tasks: Tasks) -> None:
        """Solve the tasks of a `HazardWorld`."""
        self.world, self.goals = world, tasks.goals.to(world.device)
        self.field = cost_to_go(world, tasks, *self.settings)

    def act(self, observations: Tensor, body: Tensor) -> Tensor:
        """Any observations and body -> actions [B, 2]: the move to where least is still to come."""
        u_goal, u_pain, discount, width = self.settings
        angles = 2 * math.pi * torch.arange(2 * DIRECTIONS, device=self.goals.device) / (2 * DIRECTIONS)
        full = self.world.action_bound * torch.stack([angles.cos(), angles.sin()], -1)
        to_goal = self.world.bounded(self.goals - self.world.state)
        moves = torch.cat([full.expand(len(to_goal), -1, -1), to_goal[:, None], torch.zeros_like(to_goal)[:, None]], 1)
        reached = self.world.advance(self.world.state[:, None].expand_as(moves).contiguous(), moves)
        away = (reached - self.goals[:, None]).square().sum(-1)
        cost = u_goal * (1 - torch.exp(-away / (2 * width**2)))
        cost = cost + u_pain * self.world.share_in(reached, self.world.hazards)
        total = cost + discount * self.field.at(reached[:, None])[:, 0, :, 0]
        return moves[torch.arange(len(moves)), total.argmin(1)]
