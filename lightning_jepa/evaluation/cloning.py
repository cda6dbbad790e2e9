"""A policy that imitates whoever walked in the training data: what distillation from plans has to be better than.

Legend: N episodes, T steps, B drawn, D state, A action.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from lightning_jepa.evaluation.states import encode_frames
from lightning_jepa.evaluation.walks import Walker
from lightning_jepa.evaluation.world import ExamWorld, draw_layouts
from lightning_jepa.protocols import Policy, WorldModel
from lightning_jepa.types import Modulation


class Clonable(Policy, Protocol):
    """A policy that says how far it is from what was done."""

    def misfit(self, s: Tensor, modulation: Modulation, planned: Tensor) -> Tensor:
        """[B, D], [B, A] -> [B]."""
        ...


def untrained(policy: nn.Module, seed: int) -> Any:
    """A policy of the same size with the weights of a beginner."""
    fresh = copy.deepcopy(policy)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return fresh.requires_grad_(True).eval()


def cloned(
    policy: nn.Module,
    world: ExamWorld,
    walker: Walker,
    world_model: WorldModel,
    seed: int,
    *,
    episodes: int = 400,
    updates: int = 2000,
    batch: int = 512,
) -> Any:
    """Behaviour cloning with hindsight: whatever state an episode came to later counts as what was wanted.

    A policy of the same size, from scratch: minimise D(a[t], A(s[t], goal = s[t + k])), k uniform over what is left of
    the episode, on walks in training layouts.
    """
    student, generator = untrained(policy, seed), Generator().manual_seed(seed)
    layouts = draw_layouts(world, "train", episodes, generator)
    frame, states, actions = world.reset(layouts, walker.reset(world, layouts, generator)), [], []
    for _ in range(world.episode_steps):
        states.append(encode_frames(world_model, frame))
        actions.append(walker.act(frame, world.body()).to(frame.device))
        frame = world.step(actions[-1])
    s, a = torch.stack(states, 1), torch.stack(actions, 1)
    steps = s.shape[1]
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    for _ in range(updates):
        row = torch.randint(episodes, (batch,), generator=generator)
        now = torch.randint(steps - 1, (batch,), generator=generator)
        ahead = 1 + (torch.rand(batch, generator=generator) * (steps - 1 - now)).long()
        loss = student.misfit(s[row, now], Modulation(s[row, now + ahead]), a[row, now]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student.eval()
