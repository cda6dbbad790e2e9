"""Plane geometry of worlds made of axis-aligned walls, for many episodes at once.

Legend: B episodes, K walls each, Q points or moves in each episode. A wall is (x0, y0, x1, y1) with x0 < x1, y0 < y1.
Pixels are unit squares centred on integer coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FAR = 1e9


def inflate(walls: Tensor, by: float) -> Tensor:
    """Walls [..., 4] grown by `by` on each side: what a disc of that radius can't enter with its centre."""
    return walls + torch.tensor([-by, -by, by, by], dtype=walls.dtype, device=walls.device)


def free_fraction(position: Tensor, move: Tensor, walls: Tensor) -> Tensor:
    """The share of each straight move that is free of walls.

    Args:
        position: [B, Q, 2].
        move: [B, Q, 2].
        walls: [B, K, 4].

    Returns:
        [B, Q] in [0, 1]: 1 where nothing is touched, 0 where the move starts against a wall that it would enter.
    """
    p, d = position[:, :, None], move[:, :, None]
    still = d.abs() < 1e-9
    inverse = torch.where(still, torch.full_like(d, _FAR), d.reciprocal())
    to_low = (walls[:, None, :, :2] - p) * inverse
    to_high = (walls[:, None, :, 2:] - p) * inverse
    # A move along one axis only is inside the slab of the other axis either always or never.
    beside = still & ((p <= walls[:, None, :, :2]) | (p >= walls[:, None, :, 2:]))
    enter = torch.where(still, torch.full_like(d, -_FAR), torch.minimum(to_low, to_high))
    leave = torch.where(still, torch.full_like(d, _FAR), torch.maximum(to_low, to_high))
    leave = torch.where(beside, torch.full_like(d, -_FAR), leave)
    first, last = enter.amax(-1), leave.amin(-1)
    hit = (first < last) & (last > 0) & (first < 1)
    return torch.where(hit, first, torch.ones_like(first)).clamp(0, 1).amin(-1)


def travel(position: Tensor, move: Tensor, walls: Tensor, skin: float = 1e-3) -> Tensor:
    """Where straight moves end that stop at the first wall, `skin` short of it. Shapes as in `free_fraction`."""
    share = free_fraction(position, move, walls)
    length = move.norm(dim=-1).clamp_min(1e-9)
    share = torch.where(share < 1, (share - skin / length).clamp_min(0), share)
    return position + move * share[..., None]


def inside(position: Tensor, walls: Tensor) -> Tensor:
    """Whether points [B, Q, 2] lie within any of the walls [B, K, 4]: [B, Q]."""
    p = position[:, :, None]
    return ((p > walls[:, None, :, :2]) & (p < walls[:, None, :, 2:])).all(-1).any(-1)


def coverage(walls: Tensor, size: int, stride: int) -> Tensor:
    """Draw walls [B, K, 4] as the covered share of each pixel: [B, h, h] with h = (size - 1) // stride + 1."""
    centre = torch.arange(0, size, stride, dtype=walls.dtype, device=walls.device)
    low, high = centre - stride / 2, centre + stride / 2

    def overlap(start: Tensor, end: Tensor) -> Tensor:
        shared = torch.minimum(end[..., None], high) - torch.maximum(start[..., None], low)
        return shared.clamp_min(0) / stride

    across = overlap(walls[..., 0], walls[..., 2])
    down = overlap(walls[..., 1], walls[..., 3])
    return torch.einsum("bkx,bky->bkyx", across, down).sum(1).clamp_max(1)


def blob(position: Tensor, size: int, stride: int, std: float) -> Tensor:
    """Draw a Gaussian spot of peak 1 at each point [B, 2]: [B, h, h]."""
    centre = torch.arange(0, size, stride, dtype=position.dtype, device=position.device)
    x, y = (torch.exp(-((centre - position[:, axis, None]) ** 2) / (2 * std**2)) for axis in (0, 1))
    return y[:, :, None] * x[:, None, :]


def way_points(walls: Tensor, margin: float) -> Tensor:
    """Corners of walls [B, K, 4], moved out by `margin`: the only places where a shortest path bends, [B, 4K, 2]."""
    x0, y0, x1, y1 = inflate(walls, margin).unbind(-1)
    corners = torch.stack([torch.stack(c, -1) for c in ((x0, y0), (x0, y1), (x1, y0), (x1, y1))], 2)
    return corners.flatten(1, 2)


def shortest_ways(walls: Tensor, goal: Tensor, margin: float = 0.05) -> tuple[Tensor, Tensor]:
    """Length of the shortest free way from every way point to the goal, by relaxation over the visibility graph.

    Args:
        walls: [B, K, 4], inflated by the radius of the agent.
        goal: [B, 2].
        margin: distance kept from corners.

    Returns:
        nodes [B, 4K + 1, 2], the goal last, and their lengths to the goal [B, 4K + 1], infinite where unreachable.
    """
    nodes = torch.cat([way_points(walls, margin), goal[:, None]], 1)
    count = nodes.shape[1]
    start = nodes[:, :, None].expand(-1, -1, count, -1).flatten(1, 2)
    move = nodes[:, None].expand(-1, count, -1, -1).flatten(1, 2) - start
    seen = (free_fraction(start, move, walls) >= 1).view(-1, count, count)
    step = torch.where(seen, move.norm(dim=-1).view(-1, count, count), torch.inf)
    blocked = inside(nodes, walls)
    step = step.masked_fill(blocked[:, :, None] | blocked[:, None], torch.inf)
    length = torch.full_like(step[:, 0], torch.inf)
    length[:, -1] = 0
    for _ in range(count):
        shorter = torch.minimum(length, (step + length[:, None]).amin(-1))
        if torch.equal(shorter, length):
            break
        length = shorter
    return nodes, length


def way_to_goal(position: Tensor, walls: Tensor, ways: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The geodesic from points to a goal.

    Args:
        position: [B, Q, 2].
        walls: [B, K, 4], inflated by the radius of the agent.
        ways: to the goal, from `shortest_ways`.

    Returns:
        its length [B, Q], and the point to head for next [B, Q, 2].
    """
    nodes, length = ways
    b, q, n = *position.shape[:2], nodes.shape[1]
    start = position[:, :, None].expand(-1, -1, n, -1).reshape(b, q * n, 2)
    move = nodes[:, None].expand(-1, q, -1, -1).reshape(b, q * n, 2) - start
    seen = (free_fraction(start, move, walls) >= 1).view(b, q, n)
    distance = move.norm(dim=-1).view(b, q, n)
    total = torch.where(seen, distance, torch.inf) + length[:, None]
    # A way point one already stands on leads nowhere: without this an expert would wait there for ever.
    reached = distance < 1e-2
    reached[..., -1] = False
    best, choice = torch.where(reached, total + 1e-2, total).min(-1)
    return best, nodes[torch.arange(b, device=nodes.device)[:, None], choice]
