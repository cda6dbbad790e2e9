"""Imagined walks that spread over all that can be reached (paper section 3.1.2: search over imagined states).

Legend: B episodes, P pool of imagined states, N chosen, A action, D state, M numbers of the metric space.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from lightning_jepa.actor.planners.shooting import check_colour, check_counts, check_positive, coloured_noise, pick
from lightning_jepa.protocols import WorldModel


class Scouts:
    """Random walks from states that are known, then again from states among those found that lie far apart.

    Args:
        rounds: rounds of walks.
        origins: states from which walks start in each round.
        walks: random walks from each of them.
        walk_steps: steps in each.
        kept: states kept of those that are found from one origin in a round; all would need much memory.
        action_size: numbers in an action.
        action_bound: norm of all actions.
        colour: temporal correlation of the walks, see `coloured_noise`.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        rounds: int,
        origins: int,
        walks: int,
        walk_steps: int,
        kept: int,
        action_size: int,
        action_bound: float,
        colour: float = 2.0,
    ) -> None:
        check_counts(rounds=rounds, origins=origins, walks=walks, walk_steps=walk_steps, kept=kept)
        check_counts(action_size=action_size)
        check_positive(action_bound=action_bound)
        check_colour(colour)
        self.rounds, self.origins, self.walks, self.walk_steps, self.kept = rounds, origins, walks, walk_steps, kept
        self.action_size, self.action_bound, self.colour = action_size, action_bound, colour

    @property
    def evaluations(self) -> int:
        """Model steps spent in one episode."""
        return self.rounds * self.origins * self.walks * self.walk_steps

    def spread(
        self,
        known: Tensor,
        world_model: WorldModel,
        placed: Callable[[Tensor], Tensor],
        generator: Generator | None = None,
    ) -> Tensor:
        """States that can be reached from those known, [B, P, D], which are the first of [B, P', D].

        Args:
            known: where walks begin.
            world_model: imagines them.
            placed: of states [B, P, D], where they are in the space in which they should lie far apart, [B, P, M].
            generator: of the walks.
        """
        pool, places = known, placed(known)
        for _ in range(self.rounds):
            if pool.shape[1] < self.origins:
                origins = pool[:, torch.arange(self.origins, device=pool.device) % pool.shape[1]]
            else:
                origins = pick(pool, farthest(places, self.origins)[0])
            walks = full_speed(
                self.origins * self.walks, self.walk_steps, self.action_size, self.action_bound, self.colour, generator
            ).to(known)
            found = []
            for origin, actions in zip(origins.unbind(1), walks.split(self.walks), strict=True):
                some = torch.randperm(self.walks * self.walk_steps, generator=generator)[: self.kept].to(pool.device)
                found.append(imagined(world_model, origin, actions).flatten(1, 2)[:, some])
            new = torch.cat(found, 1)
            pool, places = torch.cat([pool, new], 1), torch.cat([places, placed(new)], 1)
        return pool


def imagined(world_model: WorldModel, s: Tensor, actions: Tensor) -> Tensor:
    """From s [B, D] by the same actions [S, L, A] in every episode: [B, S, L, D]."""
    with torch.inference_mode():
        return world_model.rollout(s, actions.expand(len(s), -1, -1, -1))


def full_speed(
    sequences: int, steps: int, action_size: int, action_bound: float, colour: float, generator: Generator | None
) -> Tensor:
    """Random action sequences [sequences, steps, A] whose actions all have the largest norm."""
    noise = coloured_noise(sequences, steps, action_size, colour, generator, torch.empty(0))
    return noise / noise.norm(dim=-1, keepdim=True).clamp_min(1e-9) * action_bound


def farthest(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Greedily choose points that are far apart, the first one first.

    Args:
        points: [B, P, M].
        count: how many.

    Returns:
        their indices [B, N], and the largest distance [B] of any point from those chosen.
    """
    rows = torch.arange(len(points), device=points.device)
    chosen = torch.zeros(len(points), count, dtype=torch.long, device=points.device)
    nearest = (points - points[:, :1]).norm(dim=-1)
    for i in range(1, count):
        chosen[:, i] = nearest.argmax(1)
        nearest = torch.minimum(nearest, (points - points[rows, chosen[:, i]][:, None]).norm(dim=-1))
    return chosen, nearest.amax(1)
