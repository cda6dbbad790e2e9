"""What each level of a hierarchy still holds, and how far ahead it sees: probes and rollouts, side by side.

Legend: N walks, T frames, D state of a level, F factors, K horizons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn

from lightning_jepa.evaluation.probes import LinearProbe, fit_probe, r2_figures, randomised
from lightning_jepa.evaluation.results import Figure
from lightning_jepa.evaluation.states import BATCH
from lightning_jepa.evaluation.walks import Walker, Walks, collected
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
    random: dict[str, Figure]  # the same, off those of levels with random weights: the floor
    place: LinearProbe  # reads the agent's place off them, pixels
    errors: dict[int, Tensor]  # horizon in steps of level 1 -> pixels [N] between imagined and true position
    mistaken: dict[int, Tensor]  # the same where it is told the actions of another walk: has to be worse
    staying: dict[int, Tensor]  # the same of who says that nothing moves


@torch.no_grad()
def level_rows(
    world: ExamWorld, model: Lifted, walker: Walker, fit_walks: int, test_walks: int, horizon: int, seed: int
) -> list[LevelRows]:
    """Probes fitted in training layouts; everything is measured in held-out ones. The lowest level first.

    Args:
        world: where walks are made.
        model: all levels.
        walker: who makes them, as training data were: longer chunks than those are no level's task.
        fit_walks: walks that probes are fitted on.
        test_walks: walks of `horizon` steps, for probes and rollouts.
        horizon: steps of level 1; a multiple of every level's stride.
        seed: of the walks.

    Raises:
        ValueError: if the model is no module.
    """
    generator = Generator().manual_seed(seed)
    fit = collected(world, "train", fit_walks, 8, walker, generator)
    test = collected(world, "held_out", test_walks, horizon, walker, generator)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{type(model).__name__} has no weights to randomise for the control; give an nn.Module")
    floor, found = randomised(model, seed), []
    for number in range(1, model.depth + 1):
        probe, r2 = _probed(world, model, fit, test, number)
        stride = 1 if number == 1 else model.stride(number)
        place, at = probe.first(2), range(stride, horizon + 1, stride)
        here = place(_frames(model, test, number, horizon + 1)[0])
        staying = {ahead: (here - test.positions[:, ahead]).norm(dim=-1) for ahead in at}
        errors, mistaken = (_errors(model, test, place, number, at, other) for other in (0, 1))
        _, random = _probed(world, floor, fit, test, number)
        found.append(LevelRows(r2, random, place, errors, mistaken, staying))
    return found


def _probed(
    world: ExamWorld, model: Lifted, fit: Walks, test: Walks, number: int
) -> tuple[LinearProbe, dict[str, Figure]]:
    """A probe of a level, and what it reads."""
    probe = fit_probe(*_frames(model, fit, number, 4))
    r2 = r2_figures(probe, *_frames(model, test, number, max(1, (test.truth.shape[1] - 1) // 4)))
    return probe, dict(zip(world.truth_names, r2, strict=True))


def _frames(model: Lifted, walks: Walks, number: int, every: int) -> tuple[Tensor, Tensor, Tensor]:
    """States [N, D], factors [N, F] and layouts [N] of some frames, each perceived alone."""
    frames, truth = walks.observations[:, ::every], walks.truth[:, ::every]
    alone = frames.flatten(0, 1)[:, None]
    states = torch.cat([model.lift(model.encode(some), number)[:, 0] for some in alone.split(BATCH)])
    return states.float(), truth.flatten(0, 1), walks.layouts.repeat_interleave(frames.shape[1])


def _errors(
    model: Lifted, walks: Walks, probe: LinearProbe, number: int, horizons: Sequence[int], other: int
) -> dict[int, Tensor]:
    """Led by the actions of the walk `other` places further."""
    parts, led = [], walks.actions.roll(other, 0)
    for frames, actions in zip(walks.observations[:, :1].split(BATCH), led.split(BATCH), strict=True):
        parts.append(probe(model.predicted(model.encode(frames)[:, 0], actions, number).float()))
    decoded = torch.cat(parts)
    return {
        horizon: (decoded[:, place] - walks.positions[:, horizon]).norm(dim=-1)
        for place, horizon in enumerate(horizons)
    }
