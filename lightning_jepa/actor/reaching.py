"""Mode-1 of a level: what to do below to get from a state of a level to the next one that its plan wants.

Legend: B batch, E state of the level, n steps of the level below in one of its own, A action below.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_jepa.layers import mlp


class Reaching(nn.Module):
    """a[0], ..., a[n-1] = A(s2, s2'): one pass in the place of a search (paper sections 3.1.1 and 4.6).

    Learned in hindsight: wherever n steps led is a subgoal that just these steps reach (as goals are relabelled in
    Andrychowicz et al., 2017), so it needs no plans and no reward.

    Args:
        state_size: E.
        steps: n.
        action_size: A.
        action_bound: largest norm of an action below.
        hidden: width of both hidden layers.
    """

    def __init__(self, state_size: int, steps: int, action_size: int, action_bound: float, hidden: int = 256) -> None:
        super().__init__()
        self.steps, self.action_size, self.action_bound = steps, action_size, action_bound
        self.layers = mlp(2 * state_size, hidden, steps * action_size)

    def forward(self, s: Tensor, wanted: Tensor) -> Tensor:
        """[..., E], [..., E] -> [..., n, A]."""
        found = self.layers(torch.cat([s, wanted], -1)).unflatten(-1, (self.steps, self.action_size)).float()
        length = found.norm(dim=-1, keepdim=True)
        actions: Tensor = self.action_bound * found * (torch.tanh(length) / length.clamp_min(1e-6))
        return actions

    def misfit(self, s: Tensor, wanted: Tensor, done: Tensor) -> Tensor:
        """Huber's distance from what was done, [..., n, A] -> [...], in units of the action bound."""
        error = (self(s, wanted) - done) / self.action_bound
        return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=0.2).sum(-1).mean(-1)
