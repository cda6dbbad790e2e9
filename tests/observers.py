"""Agents and models of Two-Rooms whose true answers are known."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from lightning_jepa.types import Modulation, Plan


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


class Centroid:
    """Sees the agent at the centroid of its spot. Imagines by adding actions up: knows no walls."""

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        spot = observations[:, :, 0].double()
        pixels = torch.arange(spot.shape[-1]).double() * 64 / (spot.shape[-1] - 1)
        mass = spot.sum((-1, -2)).clamp_min(1e-9)
        x, y = (spot.sum(axis) @ pixels / mass for axis in (-2, -1))
        return torch.stack([x, y], -1).float()

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        return s[:, None, None] + actions.cumsum(2)


class Greedy:
    """A planner of one candidate: straight at the goal, ten steps."""

    def plan(self, s, world_model, cost, modulation, start=None, generator=None) -> Plan:
        step = modulation.goal - s[..., :2]
        step = step / step.norm(dim=-1, keepdim=True).clamp_min(1e-6) * 2
        actions = step[:, None].expand(-1, 10, -1)
        states = world_model.rollout(s, actions[:, None])
        total = cost(states, actions[:, None], modulation).sum(-1)[:, 0]
        return Plan(actions, states[:, 0], total, 10)


class Sampler:
    """The best of 48 noisy straight lines of 12 steps, first heading drawn anywhere: a small random search."""

    def plan(self, s, world_model, cost, modulation, start=None, generator=None) -> Plan:
        noise = torch.Generator().manual_seed(0)
        angle = 6.2832 * torch.rand(1, 48, 2, generator=noise)
        heading = angle.repeat_interleave(6, 2)
        actions = 2 * torch.stack([heading.cos(), heading.sin()], -1).expand(len(s), -1, -1, -1)
        states = world_model.rollout(s, actions)
        total = cost(states, actions, modulation).sum(-1)
        value, best = total.min(1)
        rows = torch.arange(len(s))
        return Plan(actions[rows, best], states[rows, best], value, 48 * 12)


class Cycle:
    """The perception-action cycle at its smallest, replanning at every step."""

    def __init__(self, world_model, cost, planner) -> None:
        self.world_model, self.cost, self.planner, self.evaluations = world_model, cost, planner, 0
        self.plan = None

    def reset(self, goal_observations: Tensor) -> None:
        self.modulation = Modulation(goal=self.world_model.encode(goal_observations[:, None])[:, 0])

    def act(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        s = self.world_model.encode(observations[:, None])[:, 0]
        self.plan = self.planner.plan(s, self.world_model, self.cost, self.modulation)
        self.evaluations += self.plan.evaluations
        return self.plan.actions[:, 0]
