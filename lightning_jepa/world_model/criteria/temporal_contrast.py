"""A space in which distance tells how long it takes to get there.

Legend: B batch, T time, D state, E metric space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TemporalContrast(nn.Module):
    """InfoNCE over the times of an episode (paper section 4.3, Table 1): soon is near, any other time is far.

        contrast = - mean_t log  exp(-F(t, t+1)) / sum_u exp(-F(t, u)),   F(t, u) = |v[t] - v[u]|^2 / k,  v = metric(s)

    where frames are k steps apart: the square of a distance grows with time in a diffusion, so that one metric serves
    windows of different strides, short ones for its detail and long ones for its reach. Both directions of time count.

    Contrastive samples come from the same episode, so that what stays constant in an episode cannot tell them apart,
    and what is left is where in the world the agent is. At its optimum F is, up to a constant, minus the log of how
    much likelier it is to be at u shortly after t than at any time: where walls are in between it grows with the way
    around them, not with the straight line through.

    Args:
        metric: v = metric(s), from states [..., D] to [..., E].
        apart: learn distances between states that others make; no gradient reaches these.
        imagined: states of each prediction, the first ones, that teach that what is predicted is where what then comes
            is, see `misled`; 0: none. Far ahead predictions may be uncertain, and then this term shrinks the metric.

    Raises:
        ValueError: if `imagined` is no number of states.
    """

    def __init__(self, metric: nn.Module, apart: bool = False, imagined: int = 0) -> None:
        super().__init__()
        if isinstance(imagined, bool) or imagined < 0:
            raise ValueError(f"geometry.imagined={imagined}: give a number of predicted states, 0 for none")
        self.metric, self.apart, self.imagined = metric, apart, imagined

    def forward(self, states: Tensor, stride: int) -> dict[str, Tensor]:
        """States [B, T, D] of frames `stride` steps apart -> the term "contrast".

        Raises:
            ValueError: if there is no negative to contrast with.
        """
        times = states.shape[1]
        if times < 3:
            raise ValueError(
                f"windows of {times} states: a contrast over time needs at least 3; raise data.levels' length"
            )
        v = self.metric(states.detach() if self.apart else states).float()
        energy = torch.cdist(v, v).square() / stride
        energy = energy + torch.diag(torch.full((times,), torch.inf, device=v.device))  # itself is no answer
        later = torch.arange(1, times, device=v.device).expand(len(v), -1).flatten()
        forth = F.cross_entropy(-energy[:, :-1].flatten(0, 1), later)
        back = F.cross_entropy(-energy[:, 1:].flatten(0, 1), later - 1)
        return {"contrast": (forth + back) / 2}

    def misled(self, predicted: Tensor, s_y: Tensor) -> Tensor:
        """How far predicted states [..., H, D] lie from those that came, [..., H, D]: imagined = mean |v(s~) - v(s)|^2.

        Planners compare what they imagine with what they imagine. Where predictions drift off what can be seen, a
        metric that has only seen states calls any two of them far apart. And a predictor learns what distances need:
        the agent is a small part of a map, and all of the way.

        A contrast with the other states that came, in its place, was no match for it: in mazes 65 % of the pushes at a
        wall leaked through in ten steps, about 10 % with this.
        """
        if self.apart:
            predicted, s_y = predicted.detach(), s_y.detach()
        few = slice(self.imagined)
        predicted, s_y = predicted[..., few, :], s_y[..., few, :]
        off: Tensor = (self.metric(predicted).float() - self.metric(s_y).float()).square().sum(-1).mean()
        return off
