"""Contact: does the imagined agent stop at walls and pass through doors? Held-out layouts.

Legend: N pushes, H steps, D state.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lightning_jepa.evaluation.rollouts import Decode
from lightning_jepa.evaluation.states import BATCH
from lightning_jepa.evaluation.world import ExamWorld, draw_layouts
from lightning_jepa.protocols import WorldModel

STEPS, LENGTH = 10, 1.5  # pushes of ten steps of 1.5 px
GAP = (4.0, 8.0)  # from the wall's face to the agent's edge at the start, px
CLEAR_OF_DOOR, WITHIN_DOOR = 8.0, 2.5  # distance from the door's middle along the wall, px


@dataclass(frozen=True)
class Pushes:
    """N starts before the inner wall, each pushed straight at it."""

    layouts: Tensor  # int64 [N]
    starts: Tensor  # [N, 2], px
    side: Tensor  # [N]: +1 when pushed towards larger x, else -1
    wall_x: Tensor  # [N]: the plane in the middle of the wall, px

    @property
    def actions(self) -> Tensor:
        """[N, H, 2], px."""
        step = torch.stack([self.side * LENGTH, torch.zeros_like(self.side)], -1)
        return step[:, None].expand(-1, STEPS, -1)


def pushes(world: ExamWorld, count: int, at_door: bool, generator: Generator) -> Pushes:
    """Starts 4-8 px before the wall, from both sides: within 2.5 px of the door's middle, or over 8 px clear of it."""
    layouts = draw_layouts(world, "held_out", count, generator)
    names = world.layouts.factor_names
    wall_x, door_y = (world.layouts.factors(layouts)[:, names.index(name)] for name in ("wall_x", "door_y"))
    side = 2.0 * torch.randint(2, (count,), generator=generator) - 1
    gap = GAP[0] + (GAP[1] - GAP[0]) * torch.rand(count, generator=generator)
    x = wall_x - side * (world.layouts.half_wall + world.radius + gap)
    u = torch.rand(count, generator=generator)
    if at_door:
        y = door_y + WITHIN_DOOR * (2 * u - 1)
    else:
        rooms = world.layouts.rooms(layouts)
        low, high = rooms[:, 0, 1] + world.radius, rooms[:, 0, 3] - world.radius
        below = (door_y - CLEAR_OF_DOOR - low).clamp_min(0)
        above = (high - door_y - CLEAR_OF_DOOR).clamp_min(0)
        y = low + u * (below + above)
        y = torch.where(y < low + below, y, y - low - below + door_y + CLEAR_OF_DOOR)
    where = torch.stack([x, y], -1).to(world.device)
    return Pushes(layouts, where, side.to(world.device), wall_x.to(world.device))


@torch.no_grad()
def beyond(world: ExamWorld, world_model: WorldModel, decode: Decode, pushed: Pushes) -> Tensor:
    """How far beyond the middle of the wall the decoded agent is after each step, [N, H], px (negative: before it)."""
    parts = []
    for begin in range(0, len(pushed.side), BATCH):
        some = slice(begin, begin + BATCH)
        s = world_model.encode(world.reset(pushed.layouts[some], pushed.starts[some])[:, None])[:, 0]
        x = decode(world_model.rollout(s, pushed.actions[some, None])[:, 0])[..., 0]
        parts.append((x - pushed.wall_x[some, None]) * pushed.side[some, None])
    return torch.cat(parts)


def leaks(world: ExamWorld, world_model: WorldModel, decode: Decode, count: int, generator: Generator) -> Tensor:
    """Pushes at the wall whose decoded agent is beyond the middle of the wall at any of the steps, bool [N]."""
    return (beyond(world, world_model, decode, pushes(world, count, False, generator)) > 0).any(1)


def passes(world: ExamWorld, world_model: WorldModel, decode: Decode, count: int, generator: Generator) -> Tensor:
    """Pushes through the door whose decoded agent is beyond the wall's far face after the last step, bool [N]."""
    far = world.layouts.half_wall
    return beyond(world, world_model, decode, pushes(world, count, True, generator))[:, -1] > far
