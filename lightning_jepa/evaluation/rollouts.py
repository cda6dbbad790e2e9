"""Open-loop prediction: how far the imagined agent is from the true one, in pixels.

Legend: N walks, T frames, D state, K horizons asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_jepa.evaluation.states import BATCH
from lightning_jepa.evaluation.walks import Walks
from lightning_jepa.protocols import WorldModel

Decode = Callable[[Tensor], Tensor]  # states [..., D] -> positions [..., 2], pixels


@dataclass(frozen=True)
class RolloutErrors:
    """Distance between decoded and true position after each horizon, [N, K], pixels.

    Attributes:
        model: free-running from the first frame.
        copy_last: the first frame's position, decoded: what a model that predicts no change would say. Must be worse.
        shuffled_actions: the model led by another walk's actions. Must be worse.
        touched: bool [N, K]: the true agent touched a wall on the way there.
    """

    model: Tensor
    copy_last: Tensor
    shuffled_actions: Tensor
    touched: Tensor


@torch.no_grad()
def imagine(world_model: WorldModel, walks: Walks, decode: Decode, shift: int = 0) -> Tensor:
    """Decoded positions [N, T, 2] of free-running rollouts along the actions of the walk `shift` places further."""
    actions = walks.actions.roll(shift, 0)
    parts = []
    for frames, led in zip(walks.observations[:, :1].split(BATCH), actions.split(BATCH), strict=True):
        s = world_model.encode(frames)
        imagined = world_model.rollout(s[:, 0], led[:, None])[:, 0]
        parts.append(decode(torch.cat([s, imagined], 1)))
    return torch.cat(parts)


def rollout_errors(
    world_model: WorldModel, walks: Walks, decode: Decode, horizons: Sequence[int], moved: float = 0.99
) -> RolloutErrors:
    """Errors after `horizons` steps of held-out walks.

    Args:
        world_model: encodes the first frame and imagines the rest.
        walks: windows of at least max(horizons) + 1 frames.
        decode: reads positions off states, fitted on training layouts.
        horizons: steps ahead.
        moved: a step that went less than this share of its action touched a wall.

    Raises:
        ValueError: if the walks are too short.
    """
    if max(horizons) >= walks.truth.shape[1]:
        raise ValueError(
            f"horizons {list(horizons)} need walks of {max(horizons) + 1} frames, not {walks.truth.shape[1]}"
        )
    at, truth = list(horizons), walks.positions
    free = imagine(world_model, walks, decode)
    shuffled = imagine(world_model, walks, decode, shift=1)
    step = (truth[:, 1:] - truth[:, :-1]).norm(dim=-1)
    touched = (step < moved * walks.actions.norm(dim=-1)).cumsum(1) > 0
    return RolloutErrors(
        model=(free - truth).norm(dim=-1)[:, at],
        copy_last=(free[:, :1] - truth).norm(dim=-1)[:, at],
        shuffled_actions=(shuffled - truth).norm(dim=-1)[:, at],
        touched=touched[:, [horizon - 1 for horizon in at]],
    )
