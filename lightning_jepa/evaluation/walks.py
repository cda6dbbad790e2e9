"""Random walks that probes and rollouts are measured on, made in the world itself.

Legend: N walks, T frames, C H W image, F truth.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from lightning_jepa.evaluation.world import ExamWorld, draw_layouts, draw_positions


class Walks(NamedTuple):
    """N windows of T frames."""

    layouts: Tensor  # int64 [N]
    observations: Tensor  # uint8 [N, T, C, H, W]
    actions: Tensor  # [N, T - 1, 2], pixels
    truth: Tensor  # [N, T, F]; the first two are the agent's position

    @property
    def positions(self) -> Tensor:
        """[N, T, 2], pixels."""
        return self.truth[..., :2]


class Walker(Protocol):
    """Who collects training data (`data_pipelines.collect.CollectionPolicy`)."""

    def reset(self, world: Any, layouts: Tensor, generator: Generator) -> Tensor:
        """Layouts [N] -> starts."""
        ...

    def act(self, observations: Tensor, body: Tensor) -> Tensor:
        """What is seen and felt -> actions [N, A]."""
        ...


def collected(world: ExamWorld, split: str, count: int, steps: int, walker: Walker, generator: Generator) -> Walks:
    """Walks of `steps` actions in layouts of a split, made as training data are."""
    layouts = draw_layouts(world, split, count, generator)
    frames = [world.reset(layouts, walker.reset(world, layouts, generator))]
    actions, truth = [], [world.truth()]
    for _ in range(steps):
        actions.append(walker.act(frames[-1], world.body()).to(world.device))
        frames.append(world.step(actions[-1]))
        truth.append(world.truth())
    return Walks(layouts, torch.stack(frames, 1), torch.stack(actions, 1), torch.stack(truth, 1))


def random_walks(
    world: ExamWorld, split: str, count: int, steps: int, generator: Generator, turn: float = 0.4
) -> Walks:
    """Walks of `steps` actions from random places in layouts of a split.

    The heading is a random walk with normal turns (std `turn`, radians), the step length uniform between half and the
    whole action bound: smooth enough to leave the place, with walls in the way.
    """
    layouts = draw_layouts(world, split, count, generator)
    starts = world.starts(draw_positions(world, layouts, generator), generator)
    first = 2 * math.pi * torch.rand(count, 1, generator=generator)
    heading = first + turn * torch.randn(count, steps, generator=generator).cumsum(1)
    length = world.action_bound * (0.5 + 0.5 * torch.rand(count, steps, generator=generator))
    actions = torch.stack([length * heading.cos(), length * heading.sin()], -1).to(world.device)
    frames, truth = [world.reset(layouts, starts)], [world.truth()]
    for action in actions.unbind(1):
        frames.append(world.step(action))
        truth.append(world.truth())
    return Walks(layouts, torch.stack(frames, 1), actions, torch.stack(truth, 1))
