"""Quantities over the floor of a room, on a grid: true ways, energies, perceived positions.

Legend: B episodes, K channels, h w grid nodes (y, x), S candidates, H horizon, D state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_jepa.evaluation.states import encode_at, energies, way_lengths
from lightning_jepa.evaluation.world import ExamWorld
from lightning_jepa.protocols import Cost, WorldModel


@dataclass(frozen=True)
class Field:
    """Values [B, K, h, w] at grid nodes `low + pitch * (column, row)`, and which nodes are free of walls [B, h, w]."""

    values: Tensor
    free: Tensor
    low: Tensor  # [2], px
    pitch: float

    def at(self, positions: Tensor) -> Tensor:
        """Bilinear values at [B, S, H, 2] -> [B, S, H, K]; outside of the grid, the nearest edge's."""
        h, w = self.values.shape[-2:]
        span = self.pitch * torch.tensor([w - 1, h - 1], device=positions.device)
        where = 2 * (positions - self.low) / span - 1
        found = F.grid_sample(self.values, where, mode="bilinear", padding_mode="border", align_corners=True)
        return found.movedim(1, -1)


def field(
    world: ExamWorld, layouts: Tensor, measure: Callable[[Tensor, Tensor, Tensor], Tensor], pitch: float
) -> Field:
    """Measure something at every free node of layouts [B].

    Args:
        world: is reset.
        layouts: [B].
        measure: (episode index [N], layout ids [N], positions [N, 2]) -> values [N, K].
        pitch: distance of the nodes, px.

    Nodes within walls take the mean of their nearest free neighbours, so that interpolation beside a wall does not see
    the other side (walls are thicker than the pitch).
    """
    nodes, (h, w), free = grid(world, layouts, pitch)
    episode, node = free.nonzero(as_tuple=True)
    measured = measure(episode, layouts.to(episode.device)[episode], nodes[node])
    values = measured.new_zeros(len(layouts), len(nodes), measured.shape[1])
    values[episode, node] = measured
    free = free.unflatten(1, (h, w))
    return Field(filled(values.unflatten(1, (h, w)).movedim(-1, 1), free), free, nodes[0], pitch)


def grid(world: ExamWorld, layouts: Tensor, pitch: float) -> tuple[Tensor, tuple[int, int], Tensor]:
    """Nodes [N, 2] over all rooms of layouts [B], row by row, their h and w, and which are free [B, N].

    Resets the world.
    """
    rooms = world.layouts.rooms(layouts)
    low = rooms[..., :2].amin((0, 1)).to(world.device)
    high = rooms[..., 2:].amax((0, 1)).to(world.device)
    w, h = (int(n) + 1 for n in ((high - low) / pitch).round())
    y, x = torch.meshgrid(*(torch.arange(n, device=low.device) for n in (h, w)), indexing="ij")
    nodes = (low + pitch * torch.stack([x, y], -1)).flatten(0, 1)
    world.reset(layouts, nodes[:1].expand(len(layouts), -1))
    p, solid = nodes[None, :, None], world.solid[:, None]
    inside = ((p >= solid[..., :2]) & (p <= solid[..., 2:])).all(-1).any(-1)
    return nodes, (h, w), ~inside


def filled(values: Tensor, free: Tensor) -> Tensor:
    """Values [B, K, h, w]; nodes that are not free [B, h, w] take the mean of their nearest free neighbours."""
    known = free[:, None].to(values)
    values = values * known
    while not known.bool().all():
        total, count = (9 * F.avg_pool2d(v, 3, 1, 1) for v in (values, known))
        grown = (count > 0.5).to(values)
        values = torch.where(known.bool(), values, total / count.clamp_min(1))
        known = torch.maximum(known, grown)
        values = values * known
    return values


def way_field(world: ExamWorld, layouts: Tensor, goals: Tensor, pitch: float = 2.0) -> Field:
    """True length of the way to goals [B, 2], px: K = 1."""
    goals = goals.to(world.device)
    return field(world, layouts, lambda b, ids, p: way_lengths(world, ids, p, goals[b])[:, None], pitch)


def energy_field(
    world: ExamWorld, world_model: WorldModel, cost: Cost, layouts: Tensor, goals: Tensor, pitch: float = 2.0
) -> Field:
    """C(s(x, y), goal) for goals [B, 2]: K = 1."""
    encoded = encode_at(world, world_model, layouts, goals)

    def measure(episode: Tensor, ids: Tensor, positions: Tensor) -> Tensor:
        # All places of an episode in its own row: a cost may have been built for these episodes.
        counts = episode.bincount(minlength=len(layouts)).tolist()
        states = encode_at(world, world_model, ids, positions).split(counts)
        energy = energies(cost, pad_sequence(states, batch_first=True), encoded)
        return torch.cat([row[:count] for row, count in zip(energy, counts, strict=True)])[:, None]

    return field(world, layouts, measure, pitch)


def perceived_field(
    world: ExamWorld, world_model: WorldModel, decode: Callable[[Tensor], Tensor], layouts: Tensor, pitch: float = 2.0
) -> Field:
    """Where the model believes the agent to be when it stands at each place: K = 2, px."""

    def measure(episode: Tensor, ids: Tensor, positions: Tensor) -> Tensor:
        parts = zip(ids.split(2048), positions.split(2048), strict=True)
        return torch.cat([decode(encode_at(world, world_model, where, here)) for where, here in parts])

    return field(world, layouts, measure, pitch)
