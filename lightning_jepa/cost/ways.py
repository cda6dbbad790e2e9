"""A critic that plans: value iteration on the state's map (Tamar et al. 2016, "Value Iteration Networks").

Legend: N pairs of state and goal, D external state, c h w the state seen as a map, K intrinsic terms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOVES = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
FAR = 1000.0  # steps; more than any way takes
FAINT = 0.05  # a share of the likeliest place; less is no place


class WayNetwork(nn.Module):
    """How many steps it is to the goal, along the map's places: a member of a `Critic` of the goal's energy alone.

        v[p] <- min(v[p], min_q c[p, q] + v[q]),   v[p] = -temper log P_g(p),   steps = sum_p P_s(p) v[p]

    c, the steps to one of the eight places beside, is read off the surroundings of a place, so that what a wall is is
    learned once for all layouts; P_s and P_g, where the agent is and where it would be at the goal, mostly where the
    two states differ. Long ways are made of short ones: they are found in layouts that were never seen. An MLP has to
    learn each by heart. What it says is 1 - discount^steps, the discounted sum of a cost of one until the goal is
    reached, in units of the largest.

    Args:
        state_shape: c, h and w, with D = c h w.
        discount: the critic's.
        terms: K, which has to be 1.
        channels: of the convolutions.
        sweeps: how many places a way may have.
        body_size: the last numbers of a state, which are left out.

    Raises:
        ValueError: if the shape is not that of a map, there is another term, or a number is below one.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        discount: float,
        terms: int = 1,
        channels: int = 32,
        sweeps: int = 40,
        body_size: int = 0,
    ) -> None:
        super().__init__()
        if len(state_shape) != 3 or min(*state_shape, channels, sweeps) < 1:
            raise ValueError(
                f"state_shape={list(state_shape)}, channels={channels}, sweeps={sweeps}: give channels, height and "
                "width of the state's map, and numbers of 1 or more"
            )
        if terms != 1:
            raise ValueError(f"terms={terms}: ways lead to the goal, and no other intrinsic term is known along them")
        self.shape, self.discount, self.sweeps, self.body_size = tuple(state_shape), discount, sweeps, body_size
        c = state_shape[0]
        self.beside = nn.Sequential(
            nn.Conv2d(c, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, len(MOVES), 1),
        )
        self.place = nn.Sequential(nn.Conv2d(2 * c, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, 1, 1))
        self.temper = nn.Parameter(torch.tensor(1.0))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs

    def forward(self, states: Tensor, goals: Tensor, share: Tensor) -> Tensor:
        """[..., D + P], [..., D + P], [..., 1] -> [..., 1]."""
        steps = self.steps(states.flatten(0, -2), goals.flatten(0, -2)).view(states.shape[:-1])
        return (1 - self.discount**steps)[..., None]

    def steps(self, states: Tensor, goals: Tensor) -> Tensor:
        """[N, D + P], [N, D + P] -> [N]."""
        s, g = self._map(states), self._map(goals)
        here, there = self._place(s, g), self._place(g, s)
        v = torch.where(there > 0, -self.temper.abs() * there.clamp_min(1e-9).log(), FAR)
        cost = 10 * F.softplus(self.beside(s) + 1)  # at first a wall is everywhere
        for _ in range(self.sweeps):
            v = torch.minimum(v, (cost + _beside(v)).amin(1))
        return (here * v).flatten(1).sum(-1)

    def _map(self, states: Tensor) -> Tensor:
        external = states[:, : states.shape[1] - self.body_size]
        return external.reshape(-1, *self.shape).contiguous(memory_format=torch.channels_last)

    def _place(self, s: Tensor, other: Tensor) -> Tensor:
        """Where the agent is in s, [N, h, w]: shares, none where it is unlikely."""
        differ = (s - other).square().mean(1)
        logits = self.place(torch.cat([s, other], 1))[:, 0] + (differ + 0.01).log()
        share = logits.flatten(1).softmax(-1)
        share = share * (share > FAINT * share.amax(-1, keepdim=True))
        return (share / share.sum(-1, keepdim=True)).view_as(differ)


def _beside(v: Tensor) -> Tensor:
    """What the eight places around each say, [N, h, w] -> [N, 8, h, w]."""
    h, w = v.shape[-2:]
    around = F.pad(v, (1, 1, 1, 1), value=FAR)
    return torch.stack([around[:, 1 + y : 1 + y + h, 1 + x : 1 + x + w] for y, x in MOVES], 1)
