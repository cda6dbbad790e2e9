"""Floors and ceilings of the success table: policies that learned nothing, and planning with the truth.

They are told the simulator's exact state and goal, which an agent never is.

Legend: B episodes, S candidates, H horizon, A = 2 action (a displacement in pixels).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from lightning_jepa.evaluation.world import ExamWorld
from lightning_jepa.types import Modulation, Tasks


class _Told:
    """A policy that knows state and goal and needs no world model."""

    evaluations = 0

    def __init__(self, seed: int = 0) -> None:
        self.generator = Generator().manual_seed(seed)

    def reset(self, world: ExamWorld, tasks: Tasks) -> None:
        """Remember world and goals."""
        self.world, self.goals = world, tasks.goals.to(world.device)

    def noise(self) -> Tensor:
        """Normal noise [B, 2] whose std is the action bound."""
        drawn = torch.randn(len(self.goals), 2, generator=self.generator)
        return drawn.to(self.world.device) * self.world.action_bound


class RandomPolicy(_Told):
    """Random displacements: independent, normal, with the action bound as std (so most are full steps)."""

    def act(self, observations: Tensor, body: Tensor) -> Tensor:
        """Any observations and body -> actions [B, 2]."""
        return self.world.bounded(self.noise())


class StraightPolicy(_Told):
    """Straight at the goal, whatever stands in between."""

    def act(self, observations: Tensor, body: Tensor) -> Tensor:
        """Any observations and body -> actions [B, 2]."""
        return self.world.bounded(self.goals - self.world.state)


class DrunkardPolicy(_Told):
    """Straight at the goal plus normal noise with the action bound as std: gets around walls by luck."""

    def act(self, observations: Tensor, body: Tensor) -> Tensor:
        """Any observations and body -> actions [B, 2]."""
        straight = self.world.bounded(self.goals - self.world.state)
        return self.world.bounded(straight + self.noise())


class ExpertPolicy(_Told):
    """Along the shortest way, at full speed: the ceiling."""

    def act(self, observations: Tensor, body: Tensor) -> Tensor:
        """Any observations and body -> actions [B, 2]."""
        return self.world.expert(self.goals)


class TrueDynamics:
    """The simulator as a world model (protocol `WorldModel`): a state is the agent's position, D = 2.

    It perceives perfectly: whatever picture it is shown is taken to be the world's present one.
    """

    def __init__(self, world: ExamWorld) -> None:
        self.world = world

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        """uint8 [B, 1, C, H, W] -> the present positions [B, 1, 2]."""
        if observations.shape[1] != 1:
            raise ValueError(f"{observations.shape[1]} frames: the simulator knows the present alone; give one frame")
        return self.world.state[:, None].clone()

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        """[B, 2], [B, S, H, 2] -> true positions [B, S, H, 2]."""
        position = s[:, None].expand(-1, actions.shape[1], -1)
        path = []
        for action in actions.unbind(2):
            position = self.world.advance(position, action)
            path.append(position)
        return torch.stack(path, 2)


class PixelDistance:
    """Raw distance between positions as cost (protocol `Cost`)."""

    def __call__(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, H, 2], [B, S, H, A], goal [B, 2] -> [B, S, H], pixels."""
        return (states - modulation.goal[:, None, None]).norm(dim=-1)
