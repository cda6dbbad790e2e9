"""Contrastive criteria: low energy for what did follow, high for what did not (paper section 4.3, Table 1).

Legend: B batch (of all processes: B'), T time, N starts, H horizon, D state, Q = N H predictions of a window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_jepa.types import Encoded
from lightning_jepa.world_model.criteria.statistics import gathered, precise

OVER = ("batch_time", "batch", "time")


class InfoNCE(nn.Module):
    """Tell what did follow from other states by its energy.

        nce = mean_x  F(x, y) / tau + log sum_y' exp(-F(x, y') / tau),   F(x, y') = |Pred(s_x, a) - s_y'|^2 / D

    Args:
        temperature: tau.
        over: the other states y'. "batch_time": all that are predicted of any window. "batch": those as far ahead in
            other windows. "time": others of the same window, which what stays constant in an episode can't tell apart.
            Where predictions overlap (stage.every < stage.horizon) the first and the last meet the right state again
            and take it for another one.

    Raises:
        ValueError: if `over` is unknown, or the temperature not above zero.
    """

    def __init__(self, temperature: float = 0.1, over: str = "batch_time") -> None:
        super().__init__()
        if over not in OVER:
            raise ValueError(f"over={over!r}: choose one of {list(OVER)}")
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: give a number above 0")
        self.temperature, self.over = temperature, over

    def forward(self, batch: Encoded) -> dict[str, Tensor]:
        """The term "nce".

        Raises:
            ValueError: if there is nothing to contrast with.
        """
        energy, right = contrasts(batch, self.over, "InfoNCE")
        return {"nce": F.cross_entropy((-energy / self.temperature).flatten(0, 1), right.flatten())}


class MarginHinge(nn.Module):
    """The energy of what did not follow exceeds that of what did, by a margin that grows with how different it looks.

        hinge = mean_x mean_y'  relu( F(x, y) - F(x, y') + m |y - y'|^2 )

    with pictures y, y' in [0, 1] and |.|^2 a mean over their numbers; in the space of states the margin would vanish
    with the states.

    Args:
        margin: m.
        over: see `InfoNCE`.

    Raises:
        ValueError: if `over` is unknown, or the margin not above zero.
    """

    def __init__(self, margin: float = 10.0, over: str = "batch") -> None:
        super().__init__()
        if over not in OVER:
            raise ValueError(f"over={over!r}: choose one of {list(OVER)}")
        if not margin > 0:
            raise ValueError(f"margin={margin}: give a number above 0")
        self.margin, self.over = margin, over

    def forward(self, batch: Encoded) -> dict[str, Tensor]:
        """The term "hinge".

        Raises:
            ValueError: if there is nothing to contrast with.
        """
        energy, right = contrasts(batch, self.over, "a margin hinge")
        pictures = batch.y.flatten(3).float() / 255
        look = batch._replace(predicted=pictures, s_y=pictures)
        with torch.no_grad():
            difference, _ = contrasts(look, self.over, "a margin hinge")
        true = energy.gather(-1, right[..., None])
        excess = torch.relu(true - energy + self.margin * difference)
        others = torch.ones_like(excess).scatter(-1, right[..., None], 0.0)
        return {"hinge": (excess * others).sum() / others.sum()}


def contrasts(batch: Encoded, over: str, who: str) -> tuple[Tensor, Tensor]:
    """Energies of each prediction with each candidate, [G, R, C], and which candidate did follow, [G, R].

    Candidates come from all processes where they may come from other windows.

    Args:
        batch: predictions and what did follow.
        over: see `InfoNCE`.
        who: asks, for the message.

    Raises:
        ValueError: if the right one is the only candidate.
    """
    predicted, s_y = batch.predicted.flatten(1, 2), batch.s_y.flatten(1, 2)  # [B, Q, D]
    windows, ahead = predicted.shape[:2]
    if over == "time":
        right = torch.arange(ahead, device=predicted.device).expand(windows, -1)
    elif over == "batch":
        s_y, first = gathered(s_y)
        predicted, s_y = predicted.transpose(0, 1), s_y.transpose(0, 1)
        right = (first + torch.arange(windows, device=predicted.device)).expand(ahead, -1)
    else:
        s_y, first = gathered(s_y)
        predicted, s_y = predicted.flatten(0, 1)[None], s_y.flatten(0, 1)[None]
        right = (first * ahead + torch.arange(windows * ahead, device=predicted.device))[None]
    if s_y.shape[1] < 2:
        raise ValueError(
            f"{who} over {over!r} finds no other state to contrast with: raise data.batch_size, the number of "
            f"predictions (stage.horizon, stage.every), or take them over another axis"
        )
    with torch.autocast(predicted.device.type, enabled=False):
        distance = torch.cdist(precise(predicted), precise(s_y))
    return distance.square() / s_y.shape[-1], right
