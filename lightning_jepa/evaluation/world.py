"""What the exams need of a world beyond `protocols.World`: true dynamics, true ways and drawable states.

Legend: B episodes, Q states of each, K walls, R rooms, F factors of a layout.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Generator, Tensor

from lightning_jepa.protocols import World


class ExamLayouts(Protocol):
    """A numbered family of layouts: a wall with a door between rooms."""

    factor_names: tuple[str, ...]
    half_wall: float  # half the thickness of the inner wall, pixels
    half_door: float  # half the opening, pixels

    def ids(self, split: str) -> Tensor:
        """All layout ids of "train" or "held_out"."""
        ...

    def factors(self, ids: Tensor) -> Tensor:
        """[B] -> [B, F]."""
        ...

    def rooms(self, ids: Tensor) -> Tensor:
        """[B] -> [B, R, 4]: free boxes x0, y0, x1, y1."""
        ...


class ExamWorld(World, Protocol):
    """A world of rooms whose truth can be asked for. Models under exam live on `device`."""

    device: torch.device
    layouts: ExamLayouts
    layout_ids: Tensor  # [B]
    radius: float
    walls: Tensor  # [B, K, 4]
    solid: Tensor  # [B, K, 4]: walls grown by the radius of the agent

    def starts(self, positions: Tensor, generator: Generator) -> Tensor:
        """States [B, ...] in which episodes start at positions [B, 2]: what else there is is drawn."""
        ...

    def advance(self, states: Tensor, actions: Tensor) -> Tensor:
        """True dynamics without side effects: [B, Q, 2], [B, Q, 2] -> [B, Q, 2]."""
        ...

    def bounded(self, actions: Tensor) -> Tensor:
        """Actions [..., 2] shortened to the largest allowed norm."""
        ...

    def way_length(self, goal: Tensor) -> Tensor:
        """Length [B] of the shortest free way from the current states to goals [B, 2]."""
        ...

    def expert(self, goal: Tensor) -> Tensor:
        """The action [B, 2] of an expert who knows the walls."""
        ...

    def sample_states(self, layouts: Tensor, rooms: Tensor, generator: Generator) -> Tensor:
        """Uniform free positions [B, 2] in the given rooms [B]."""
        ...


class HazardWorld(ExamWorld, Protocol):
    """One with places that hurt."""

    hazards: Tensor  # [B, M, 4]: boxes

    def share_in(self, points: Tensor, boxes: Tensor) -> Tensor:
        """The share of a body at points [B, Q, 2] that lies in any of the boxes [B, M, 4]: [B, Q]."""
        ...


def draw_layouts(world: ExamWorld, split: str, count: int, generator: Generator) -> Tensor:
    """`count` layout ids of a split, drawn with replacement."""
    ids = world.layouts.ids(split)
    return ids[torch.randint(len(ids), (count,), generator=generator)]


def draw_positions(world: ExamWorld, layouts: Tensor, generator: Generator) -> Tensor:
    """One uniform free position [B, 2] in a random room of each layout [B]."""
    rooms = torch.randint(world.layouts.rooms(layouts).shape[1], (len(layouts),), generator=generator)
    return world.sample_states(layouts, rooms, generator).to(world.device)
