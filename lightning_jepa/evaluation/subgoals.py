"""Subgoals of hierarchical planning: kept for pictures, and its controls, in which they are true or drawn.

Legend: B episodes, T steps, S candidates, H horizon, D state of a level, M macro-action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Generator, Tensor

from lightning_jepa.evaluation.episodes import Policy
from lightning_jepa.evaluation.world import ExamWorld
from lightning_jepa.protocols import Cost, WorldModel
from lightning_jepa.types import Modulation, Plan, Tasks


class Guided(Protocol):
    """A planner that has subgoals."""

    @property
    def subgoals(self) -> list[Tensor]:
        """What each level above the first wants next, [B, D], the lowest first."""
        ...


class SubgoalTrace:
    """A policy, and what level 2 of its planner wanted at each step of the first episodes.

    Args:
        policy: acts.
        planner: its planner.
        count: episodes that are kept, at most those of the first batch.
    """

    def __init__(self, policy: Policy, planner: Guided, count: int) -> None:
        self.policy, self.planner, self.count = policy, planner, count
        self.evaluations = 0
        self._begun, self._kept = 0, list[Tensor]()

    @property
    def wanted(self) -> Tensor:
        """[B, T, D] of level 2."""
        return torch.stack(self._kept, 1)

    def reset(self, world: ExamWorld, tasks: Tasks) -> None:
        """See `Policy`."""
        self._begun += 1
        self.policy.reset(world, tasks)

    def act(self, observations: Tensor, body: Tensor) -> Tensor:
        """See `Policy`."""
        actions = self.policy.act(observations, body)
        self.evaluations = self.policy.evaluations
        if self._begun == 1:
            self._kept.append(self.planner.subgoals[0][: self.count].clone())
        return actions


class OracleSubgoals:
    """A "planner" of level 2 that knows the way: where an expert would stand some steps ahead, seen and encoded.

    What is left to go wrong below it is level 1: an upper bound for the hierarchy.

    Args:
        world: in which the agent acts; told with the tasks.
        world_model: perceives.
        steps: of the world, ahead.
    """

    horizon, action_bound = 1, 1.0

    def __init__(self, world: ExamWorld, world_model: WorldModel, steps: int) -> None:
        self.world, self.world_model, self.steps = world, world_model, steps

    def prepare(self, world: ExamWorld, tasks: Tasks) -> None:
        """Hear of the goals."""
        self.goals = tasks.goals.to(world.device)

    def plan(
        self,
        s: Tensor,
        world_model: WorldModel,
        cost: Cost,
        modulation: Modulation,
        start: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Plan:
        """See `protocols.Planner`; nothing is searched."""
        here = self.world.state.clone()
        for _ in range(self.steps):
            self.world.state = self.world.advance(self.world.state[:, None], self.world.expert(self.goals)[:, None])[
                :, 0
            ]
        ahead = self.world_model.encode(self.world.render()[:, None])
        self.world.state = here
        states = world_model.encode(ahead)
        return Plan(s.new_zeros(len(s), 1, 1), states, s.new_zeros(len(s)), 0)


class JudgedAbove:
    """The cost of a level above where a plan of level 1 ends: what a critic is worth without plans of its level.

    Args:
        cost: of that level.
        encode: from a state of level 1, [B, 1, D], to one of that level, [B, 1, D'].
    """

    def __init__(self, cost: Cost, encode: Callable[[Tensor], Tensor]) -> None:
        self.cost, self.encode = cost, encode

    def __call__(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, H, D], [B, S, H, A] -> [B, S, H]: nothing but for the last."""
        ends = self.encode(states[:, :, -1].flatten(0, 1)[:, None]).unflatten(0, states.shape[:2])
        own = modulation._replace(goal=self.encode(modulation.goal[:, None])[:, 0])
        last = self.cost(ends, actions[:, :, -1:], own)
        return torch.cat([last.new_zeros(*last.shape[:2], states.shape[2] - 1), last], -1)


class RandomSubgoals:
    """A "planner" of level 2 that does not search: where some macro-action leads.

    Args:
        action_size: M.
        action_bound: largest norm of a white macro-action.
    """

    horizon = 1

    def __init__(self, action_size: int, action_bound: float) -> None:
        self.action_size, self.action_bound = action_size, action_bound

    def plan(
        self,
        s: Tensor,
        world_model: WorldModel,
        cost: Cost,
        modulation: Modulation,
        start: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Plan:
        """See `protocols.Planner`."""
        drawn = torch.randn(len(s), 1, self.action_size, generator=generator).to(s)
        actions = drawn * (self.action_bound / drawn.norm(dim=-1, keepdim=True).clamp_min(1e-9)).clamp_max(1)
        return Plan(actions, world_model.rollout(s, actions[:, None])[:, 0], s.new_zeros(len(s)), 1)
