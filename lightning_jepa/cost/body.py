"""Terms of the intrinsic cost that are read off the body.

Legend: B episodes, S candidates, H horizon, D state whose last numbers are the body, A action.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_jepa.cost.intrinsic import channel
from lightning_jepa.types import Modulation


class Pain(nn.Module):
    """IC(s) = pain: the share of the body that is in a hazard.

    Args:
        body: names of the body's channels.
        reads: the channel.

    Raises:
        ValueError: if the body has no such channel.
    """

    def __init__(self, body: Sequence[str], reads: str = "pain") -> None:
        super().__init__()
        self.body, self.place = tuple(body), channel(body, reads, type(self).__name__)

    def forward(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, H, D] -> [B, S, H]. Predictions below zero are none."""
        return states[..., self.place].clamp_min(0)


class Hunger(nn.Module):
    """IC(s) = [1 - level / enough]_+ ^ 2: nothing while there is enough energy, 1 when there is none.

    Args:
        body: names of the body's channels.
        reads: the channel, a level between 0 and 1.
        enough: the level below which hunger begins.

    Raises:
        ValueError: if the body has no such channel or `enough` is not above 0.
    """

    def __init__(self, body: Sequence[str], reads: str = "energy_level", enough: float = 0.5) -> None:
        super().__init__()
        if not enough > 0:
            raise ValueError(f"enough={enough}: give a level above 0")
        self.body, self.place, self.enough = tuple(body), channel(body, reads, type(self).__name__), enough

    def forward(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, H, D] -> [B, S, H]."""
        return (1 - states[..., self.place] / self.enough).clamp_min(0).square()
