"""A model that watches clips and does nothing: its states, predictions and energies, in batches that fit in memory.

Legend: N clips, T frames, h of them known, H that follow, C H W image, D state.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_jepa.world_model import energy

BATCH = 64


class Watcher:
    """See above.

    Args:
        jepa: a model whose world has no actions.
    """

    def __init__(self, jepa: Any) -> None:
        self.jepa = jepa

    @torch.no_grad()
    def states(self, frames: NDArray[Any]) -> Tensor:
        """uint8 [N, T, C, H, W] -> [N, T, D]."""
        return torch.cat([self.jepa.encode(part).float() for part in torch.from_numpy(frames).split(BATCH)])

    @torch.no_grad()
    def energy(self, seen: Tensor, s_y: Tensor) -> Tensor:
        """F of continuations [N, H, D] of what was seen [N, h, D]: [N]."""
        parts = zip(seen.split(BATCH), s_y.split(BATCH), strict=True)
        return torch.cat([self.jepa.energy(s, nothing(s, y.shape[1]), y) for s, y in parts])

    @torch.no_grad()
    def predicted(self, seen: Tensor, horizon: int) -> Tensor:
        """[N, H, D]: the likeliest future."""
        return torch.cat([self.jepa.predict(s, nothing(s, horizon)) for s in seen.split(BATCH)])

    @torch.no_grad()
    def explained(self, seen: Tensor, s_y: Tensor) -> Tensor:
        """[N, H, D]: what the best z makes of a continuation."""
        parts = zip(seen.split(BATCH), s_y.split(BATCH), strict=True)
        return torch.cat([self.jepa.complete(s, nothing(s, y.shape[1]), y).predicted for s, y in parts])

    @torch.no_grad()
    def drawn(self, seen: Tensor, horizon: int, samples: int) -> Tensor:
        """Futures drawn from the prior, the same chances for all, [N, M, H, D]."""
        chance = torch.rand(samples, horizon, self.jepa.noise)
        parts = seen.split(BATCH)
        return torch.cat([self.jepa.scenarios(s, nothing(s, horizon)[:, None], chance)[:, 0] for s in parts])

    @torch.no_grad()
    def surprise(self, states: Tensor, context: int) -> Tensor:
        """Energy of each newest frame given the h before it, of films [N, T, D]: [N, T - h]."""
        return torch.cat([energy.surprise(self.jepa, part, nothing(part, 0), context) for part in states.split(BATCH)])


def nothing(s: Tensor, horizon: int) -> Tensor:
    """Who watches does nothing: actions [N, h - 1 + H, 0]."""
    return s.new_zeros(len(s), s.shape[1] - 1 + horizon, 0)
