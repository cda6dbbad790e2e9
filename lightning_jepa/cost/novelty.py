"""Terms that drive the agent to what it does not know: curiosity, and its opposite's cost, boredom.

Legend: B episodes, S candidates, H horizon, D state, A action, M members, E numbers each member gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_jepa.cost.frozen import Frozen
from lightning_jepa.types import Modulation


class Curiosity(nn.Module):
    """IC(s) = -std over members, averaged over what they give: least where they disagree, as after too few data.

    Args:
        members: modules from states [..., D] to [..., E] that were trained alike from different beginnings; they are
            copied and frozen.

    Raises:
        ValueError: if there are fewer than two.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(members) < 2:
            raise ValueError(f"{len(members)} members can't disagree: give at least 2")
        self.members = nn.ModuleList(Frozen(member) for member in members)

    def forward(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, H, D] -> [B, S, H], at most 0."""
        views = torch.stack([member(states) for member in self.members])
        return -views.var(0, correction=0).clamp_min(1e-12).sqrt().mean(-1)


class Boredom(nn.Module):
    """IC(s[t]) = exp(-|f(s[t]) - f(s[t-1])|^2 / 2 width^2): 1 where nothing changes, 0 where much does.

    Args:
        metric: f, frozen.
        width: how much change in its space ends boredom.

    Raises:
        ValueError: if `width` is not above 0.
    """

    def __init__(self, metric: nn.Module, width: float = 1.0) -> None:
        super().__init__()
        if not width > 0:
            raise ValueError(f"width={width}: give a distance above 0")
        self.metric, self.width = metric, width

    def forward(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, H, D] -> [B, S, H]. The first of a plan has nothing before it and bores as its second does."""
        points = self.metric(states)
        change = points.diff(dim=2).square().sum(-1)
        bored = torch.exp(-change / (2 * self.width**2))
        return torch.cat([bored[:, :, :1], bored], 2) if bored.shape[2] else states.new_zeros(states.shape[:3])
