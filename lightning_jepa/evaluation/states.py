"""Positions to states and to costs, in batches that fit in memory.

Legend: N positions, D state, B episodes, Q states of each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_jepa.evaluation.world import ExamWorld
from lightning_jepa.protocols import Cost, WorldModel
from lightning_jepa.types import Modulation

BATCH = 512


@torch.no_grad()
def encode_frames(world_model: WorldModel, frames: Tensor, batch: int = BATCH) -> Tensor:
    """uint8 [N, C, H, W] -> s [N, D]."""
    return torch.cat([world_model.encode(part[:, None])[:, 0] for part in frames.split(batch)])


@torch.no_grad()
def encode_at(world: ExamWorld, world_model: WorldModel, layouts: Tensor, positions: Tensor) -> Tensor:
    """What the model perceives when the agent stands at positions [N, 2] of layouts [N]: s [N, D]. Resets the world."""
    states = []
    for ids, where in zip(layouts.split(BATCH), positions.split(BATCH), strict=True):
        seen = world.reset(ids, where)[:, None]
        states.append(world_model.encode(seen, world.body()[:, None])[:, 0])
    return torch.cat(states)


def way_lengths(world: ExamWorld, layouts: Tensor, positions: Tensor, goals: Tensor) -> Tensor:
    """True length [N] of the shortest way from positions [N, 2] to goals [N, 2]. Resets the world."""
    lengths, batch = [], 64  # a visibility graph for each: more at once fall out of the processor's cache
    for ids, where, goal in zip(layouts.split(batch), positions.split(batch), goals.split(batch), strict=True):
        world.reset(ids, where)
        lengths.append(world.way_length(goal))
    return torch.cat(lengths)


@torch.no_grad()
def energies(cost: Cost, states: Tensor, goals: Tensor, action_size: int = 2) -> Tensor:
    """C(s) [B, Q] of states [B, Q, D] for the goals [B, D] (paper section 3.2)."""
    still = states.new_zeros(*states.shape[:2], 1, action_size)
    return cost(states[:, :, None], still, Modulation(goal=goals))[:, :, 0]
