"""What each level of a hierarchy still holds, and how far ahead it sees: probes and rollouts, side by side.

Legend: N walks, T frames, D state of a level, F factors, K horizons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from lightning_jepa.evaluation.probes import LinearProbe, fit_probe, r2_figures
from lightning_jepa.evaluation.results import Figure
from lightning_jepa.evaluation.states import BATCH
from lightning_jepa.evaluation.walks import Walks, random_walks
from lightning_jepa.evaluation.world import ExamWorld
from lightning_jepa.protocols import Hierarchy


class Lifted(Hierarchy, Protocol):
    """A hierarchy whose levels can be looked into."""

    def lift(self, states: Tensor, number: int) -> Tensor:
        """Successive states of level 1, [B, T, D] -> those of a level."""
        ...

    def stride(self, number: int) -> int:
        """Steps of level 1 in one of a level."""
        ...

    def predicted(self, s: Tensor, actions: Tensor, number: int) -> Tensor:
        """What a level imagines from s [B, D] of level 1 by actions [B, T, A] of level 1: [B, T / stride, D']."""
        ...


class LevelRows(NamedTuple):
    """Of one level."""

    r2: dict[str, Figure]  # of each factor, read off its states
    place: LinearProbe  # reads the agent's place off them, pixels
    errors: dict[int, Tensor]  # horizon in steps of level 1 -> pixels [N] between imagined and true position


@torch.no_grad()
def level_rows(
    world: ExamWorld, model: Lifted, fit_walks: int, test_walks: int, horizon: int, seed: int
) -> list[LevelRows]:
    """Probes fitted in training layouts; everything is measured in held-out ones. The lowest level first.

    Args:
        world: where walks are made.
        model: all levels.
        fit_walks: walks that probes are fitted on.
        test_walks: walks of `horizon` steps, for probes and rollouts.
        horizon: steps of level 1; a multiple of every level's stride.
        seed: of the walks.
    """
    generator = Generator().manual_seed(seed)
    fit = random_walks(world, "train", fit_walks, 8, generator)
    test = random_walks(world, "held_out", test_walks, horizon, generator)
    names, found = world.truth_names, []
    for number in range(1, model.depth + 1):
        probe = _fitted(model, fit, number)
        states, truth, layouts = _frames(model, test, number, max(1, horizon // 4))
        stride = 1 if number == 1 else model.stride(number)
        place = probe.first(2)
        errors = _errors(model, test, place, number, range(stride, horizon + 1, stride))
        r2 = dict(zip(names, r2_figures(probe, states, truth, layouts), strict=True))
        found.append(LevelRows(r2, place, errors))
    return found


def _fitted(model: Lifted, walks: Walks, number: int) -> LinearProbe:
    return fit_probe(*_frames(model, walks, number, 4))


def _frames(model: Lifted, walks: Walks, number: int, every: int) -> tuple[Tensor, Tensor, Tensor]:
    """States [N, D], factors [N, F] and layouts [N] of some frames, each perceived alone."""
    frames, truth = walks.observations[:, ::every], walks.truth[:, ::every]
    alone = frames.flatten(0, 1)[:, None]
    states = torch.cat([model.lift(model.encode(some), number)[:, 0] for some in alone.split(BATCH)])
    return states.float(), truth.flatten(0, 1), walks.layouts.repeat_interleave(frames.shape[1])


def _errors(model: Lifted, walks: Walks, probe: LinearProbe, number: int, horizons: Sequence[int]) -> dict[int, Tensor]:
    parts = []
    for frames, actions in zip(walks.observations[:, :1].split(BATCH), walks.actions.split(BATCH), strict=True):
        parts.append(probe(model.predicted(model.encode(frames)[:, 0], actions, number).float()))
    decoded = torch.cat(parts)
    return {
        horizon: (decoded[:, place] - walks.positions[:, horizon]).norm(dim=-1)
        for place, horizon in enumerate(horizons)
    }
