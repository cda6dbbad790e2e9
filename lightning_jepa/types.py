"""The few containers that cross rooms.

Legend: B batch, T time, C H W image, D state, A action, S candidates, N truth (or starts), P body, K energies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class Window(NamedTuple):
    """A batch of windows cut from episodes, frames `stride` world steps apart.

    `actions[:, t]` leads from `observations[:, t]` to `observations[:, t + 1]`; where the stride is above one, it holds
    the actions in between as a block, which is why actions carry an axis of that length.
    """

    observations: Tensor  # uint8 [B, T, C, H, W]
    actions: Tensor  # float32 [B, T - 1, stride, A]
    body: Tensor  # float32 [B, T, P]; P is 0 in worlds without a body
    energies: Tensor  # float32 [B, T, K]: intrinsic energies of what was observed; K is 0 where there are none
    truth: Tensor  # float32 [B, T, N]: exact simulator state, for probes alone, never for training
    plans: Tensor  # float32 [B, T - 1, stride, H * A]: what Mode-2 found there; NaN where it did not plan
    goal: Tensor  # uint8 [B, C, H, W]: the picture of the episode's goal; [B, 0] where there is none
    weights: Tensor  # float32 [B, K]: u, those of the intrinsic cost that was minimised
    times: Tensor  # int64 [B, T]: steps since the episode began, the same clock on every level
    mask: Tensor  # bool [B]: False marks padding, which validation must not count


class Encoded(NamedTuple):
    """A batch of windows as perception and world model see it: what training criteria look at (paper section 4.5).

    From N states of each window H steps were predicted; y is what was observed there, s_y its encoding.
    """

    states: Tensor  # [B, T, D]: without the body, which can't collapse
    actions: Tensor  # [B, T - 1, A], in units of the action scale
    predicted: Tensor  # s~_y [B, N, H, D]
    s_y: Tensor  # [B, N, H, D]
    y: Tensor  # uint8 [B, N, H, C, H', W']


class Modulation(NamedTuple):
    """What the configurator sets for the task at hand (paper section 3, "Configurator")."""

    goal: Tensor  # [B, D]: the encoded goal
    u: Tensor | None = None  # [B, K]: weights of the intrinsic cost's terms; 1 each where there are none
    v: Tensor | None = None  # [B, J]: weights of the critics; 1 each where there are none

    def of(self, rows: Sequence[int]) -> Modulation:
        """That of some rows of the batch."""
        u, v = (None if part is None else part[list(rows)] for part in (self.u, self.v))
        return Modulation(self.goal[list(rows)], u, v)


@dataclass(frozen=True)
class Plan:
    """What Mode-2 returns: the best action sequence found for each of B episodes (paper section 3.1.2)."""

    actions: Tensor  # [B, H, A]
    states: Tensor  # [B, H, D]: the predicted states that follow each action
    cost: Tensor  # [B]: total predicted cost of the sequence
    evaluations: int  # world-model steps spent for each episode


@dataclass(frozen=True)
class Training:
    """What is behind a checkpoint: what it cost, and how its monitors went."""

    cost: Mapping[str, float] = field(default_factory=dict)  # seconds of each stage, frames, transitions
    curves: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)  # monitor -> (step, value), rising


class Tasks(NamedTuple):
    """Start and goal pairs on which control is measured: a committed list, never trained or tuned on."""

    layouts: Tensor  # int64 [N]
    starts: Tensor  # [N, 2]
    goals: Tensor  # [N, 2]
