"""Does the planning cost order states as the true way to the goal does? On held-out layouts.

Spearman's rank correlation of C(s, goal) with the length of the shortest free way, over many states of one layout and
one goal; averaged over goals, then over layouts (rank order within a task is all that a planner uses).

Legend: L layouts, G goals of each, Q states of each, D state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from lightning_jepa.evaluation.states import encode_at, energies, way_lengths
from lightning_jepa.evaluation.world import ExamWorld, draw_layouts, draw_positions
from lightning_jepa.protocols import Cost, CostBuilder, Planner, WorldModel

MakeCost = Callable[[Tensor, Tensor], Cost]  # states [B, D] and goals [B, D] -> the cost of these B episodes


def planning_cost(planner: Planner, cost: Cost, world_model: WorldModel, seed: int) -> MakeCost:
    """What a planner descends: the cost that it builds for each goal, else the one that it is given."""
    if isinstance(planner, CostBuilder):
        return lambda s, goal: planner.build(s, world_model, goal, Generator().manual_seed(seed))
    return lambda s, goal: cost


def spearman(x: Tensor, y: Tensor) -> Tensor:
    """Rank correlation along the last axis: [..., Q], [..., Q] -> [...]. Ties share their mean rank."""
    a, b = (_ranks(v) for v in (x, y))
    a, b = (r - r.mean(-1, keepdim=True) for r in (a, b))
    norm = a.norm(dim=-1) * b.norm(dim=-1)
    # A constant side has no order: correlation zero, not 0/0.
    return torch.where(norm > 0, (a * b).sum(-1) / norm.clamp_min(1e-12), torch.zeros_like(norm))


def _ranks(values: Tensor) -> Tensor:
    ordered = values.contiguous().sort(-1).values
    first = torch.searchsorted(ordered, values.contiguous(), right=False)
    last = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (first + last).double() / 2


def cost_rank_correlation(
    world: ExamWorld,
    world_model: WorldModel,
    make_cost: MakeCost,
    generator: Generator,
    *,
    layouts: int = 32,
    goals: int = 2,
    states: int = 96,
) -> Tensor:
    """Rank correlation of the cost with the true way's length, for uniformly drawn states and goals: [L], goals' mean.

    A cost that is built for an episode is built from the first of the states.
    """
    ids = draw_layouts(world, "held_out", layouts, generator)
    at_goal, at_state = ids.repeat_interleave(goals), ids.repeat_interleave(states)
    target, place = draw_positions(world, at_goal, generator), draw_positions(world, at_state, generator)
    g = encode_at(world, world_model, at_goal, target)
    s = encode_at(world, world_model, at_state, place).unflatten(0, (layouts, states))
    s = s.repeat_interleave(goals, 0)
    energy = energies(make_cost(s[:, 0], g), s, g)
    pairs = place.unflatten(0, (layouts, states)).repeat_interleave(goals, 0)
    ways = way_lengths(
        world,
        at_goal.repeat_interleave(states),
        pairs.flatten(0, 1),
        target.repeat_interleave(states, 0),
    ).unflatten(0, (layouts * goals, states))
    return spearman(energy, ways).unflatten(0, (layouts, goals)).mean(1)
