"""Who acts while plans are collected: Mode-2, or the policy with Mode-2 looking on (paper section 3.1.3).

Legend: B episodes, C H W image, A action, H actions of a plan, K intrinsic terms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from lightning_jepa.agent import Agent
from lightning_jepa.stages.weighing import UniformWeights


class Teacher:
    """A collection policy (`data_pipelines.collect`) that records what Mode-2 plans.

    Without a student the agent's plans are carried out. With one, the student acts and gets into its own troubles, and
    the agent plans from there all the same (DAgger: Ross et al., 2011).

    Args:
        agent: plans, in Mode-2.
        u: draws the weights of each episode.
        student: the agent in Mode-1, or none.
        across: share of the episodes whose goal is in another room than the start.

    Attributes:
        goal, planned, weights: see `data_pipelines.collect.CollectionPolicy`.
    """

    def __init__(self, agent: Agent, u: UniformWeights, student: Agent | None = None, across: float = 0.7) -> None:
        if not 0 <= across <= 1:
            raise ValueError(f"across={across}: give a share between 0 and 1")
        self.agent, self.u, self.student, self.across = agent, u, student, across
        self.name = "teacher"
        self.goal: Tensor | None = None
        self.planned: Tensor | None = None
        self.weights: Tensor | None = None

    def reset(self, world: Any, layouts: Tensor, generator: Generator) -> Tensor:
        """Draw starts, goals and weights; returns the starts [B, ...]."""
        count, rooms = len(layouts), world.layouts.rooms(layouts).shape[1]
        room = torch.randint(rooms, (count,), generator=generator)
        other = (room + torch.randint(1, max(rooms, 2), (count,), generator=generator)) % rooms
        away = torch.rand(count, generator=generator) < self.across
        starts = world.sample_states(layouts, room, generator)
        goals = world.sample_states(layouts, torch.where(away, other, room), generator)
        self.weights = self.u(count, generator)
        self.goal = world.reset(layouts, goals)
        for agent in (self.agent, self.student):
            if agent is not None:
                agent.seed = int(torch.randint(2**31, (), generator=generator))
                agent.reset(self.goal, self.weights)
        state: Tensor = world.starts(starts, generator)
        return state

    @torch.no_grad()
    def act(self, observations: Tensor, body: Tensor) -> Tensor:
        """What is seen and felt -> actions [B, A]."""
        action = self.agent.act(observations, body)
        assert self.agent.last_plan is not None
        plan = self.agent.last_plan.actions.flatten(1)
        self.planned = plan if self.agent.planned else torch.full_like(plan, torch.nan)
        return action if self.student is None else self.student.act(observations, body)
