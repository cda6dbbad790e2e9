"""A critic that plans: value iteration on the state's map (Tamar et al. 2016, "Value Iteration Networks").

Legend: G goals, S states judged by each, D external state, P body, c h w the state seen as a map, K intrinsic terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOVES = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
FAR = 1000.0  # places; longer than any way
DEAR = 5.0  # the logarithm of what a move to a place beside can cost at most
WALL = 1.6  # and of what it costs at first: a wall is everywhere
FAINT = 0.3  # a share of the likeliest place; less is no place


class WayNetwork(nn.Module):
    """How many steps it is to the goal, along the map's places: a member of a `Critic` of the goal's energy alone.

        v[p] <- min(v[p], min_q c[p, q] + v[q]),   v[p] = -temper log P_g(p),   steps = crossing sum_p P_s(p) v[p]

    c, what a move to one of the eight places beside costs, is read off the surroundings of a place in the goal's
    state, which was seen, where the states to be judged are imagined. What a wall is is learned once for all
    layouts, and long ways are made of short ones: they are found in layouts that were never seen. An MLP has to
    learn each by heart. P_s and P_g, where the agent is and where it would be at the goal, are mostly where two
    states differ, a state from the goal's and the goal's from the first of the states. What it says is 1 -
    discount^steps, the discounted sum of a cost of one until the goal is reached, in units of the largest.

    Args:
        state_shape: c, h and w, with D = c h w.
        discount: the critic's.
        crossing: steps of the critic's level that lead across a place. What a way costs begins and is learned in this
            unit: where walls began at 25 times of it instead of 5, all ways of a maze led through them at last.
        terms: K, which has to be 1.
        channels: of the convolutions.
        sweeps: how many places a way may have.
        body_size: P, the last numbers of a state, which are left out.

    Raises:
        ValueError: if the shape is not that of a map, there is another term, or a number is below one.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        discount: float,
        crossing: float,
        terms: int = 1,
        channels: int = 32,
        sweeps: int = 48,
        body_size: int = 0,
    ) -> None:
        super().__init__()
        if len(state_shape) != 3 or min(*state_shape, channels, sweeps) < 1 or crossing <= 0:
            raise ValueError(
                f"state_shape={list(state_shape)}, channels={channels}, sweeps={sweeps}, crossing={crossing}: give "
                "channels, height and width of the state's map, numbers of 1 or more, and steps above 0"
            )
        if terms != 1:
            raise ValueError(f"terms={terms}: ways lead to the goal, and no other intrinsic term is known along them")
        self.shape, self.discount, self.crossing = tuple(state_shape), discount, crossing
        self.sweeps, self.body_size = sweeps, body_size
        c = state_shape[0]
        dear = nn.Conv2d(channels, len(MOVES), 1)
        assert dear.bias is not None
        nn.init.constant_(dear.bias, WALL)
        self.beside = nn.Sequential(
            nn.Conv2d(c, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            dear,
        )
        self.own = nn.Conv2d(c, channels, 3, padding=1)
        self.other = nn.Conv2d(c, channels, 3, padding=1)
        self.place = nn.Conv2d(channels, 1, 1)
        self.temper = nn.Parameter(torch.tensor(1 / 3))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs

    def forward(self, states: Tensor, goals: Tensor, share: Tensor) -> Tensor:
        """[..., S, D + P], [..., S or 1, D + P], [..., S or 1, 1] -> [..., S, 1]."""
        judged = states.shape[-2] if goals.shape[-2] == 1 else 1  # by one goal
        grouped = states.reshape(-1, judged, states.shape[-1]), goals.reshape(-1, goals.shape[-1])
        return (1 - self.discount ** self.steps(*grouped)).view(*states.shape[:-1], 1)

    def steps(self, states: Tensor, goals: Tensor) -> Tensor:
        """[G, S, D + P], [G, D + P] -> [G, S]."""
        s, g = self._map(states), self._map(goals[:, None])
        here = self._place(s, g)
        there = self._place(g, s[:, :1])[:, 0]
        begin = torch.where(there > 0, -self.temper.abs() * there.clamp_min(1e-9).log(), FAR)
        cost = self.beside(g[:, 0]).float().clamp_max(DEAR).exp()
        v = ShortestWays.apply(cost, begin, self.sweeps)
        return self.crossing * (here * v[:, None]).flatten(2).sum(-1)

    def _map(self, states: Tensor) -> Tensor:
        external = states[..., : states.shape[-1] - self.body_size]
        return external.reshape(*states.shape[:-1], *self.shape)

    def _place(self, s: Tensor, other: Tensor) -> Tensor:
        """Where the agent is in s, [G, S, h, w], seen beside the other, [G, 1, ...]: shares, none where unlikely."""
        differ = (s.float() - other).square().mean(2)
        seen = F.relu(_each(self.own, s) + _each(self.other, other))
        logits = _each(self.place, seen)[:, :, 0].float() + (differ + 0.01).log()
        share = logits.flatten(2).softmax(-1)
        share = share * (share > FAINT * share.amax(-1, keepdim=True))
        return (share / share.sum(-1, keepdim=True)).view_as(differ)


class ShortestWays(torch.autograd.Function):
    """v from c [G, 8, h, w] and how it begins [G, h, w]; ten times as fast as to go back through every sweep.

    What v[p] changes with are the moves of the shortest way from p, and where it ends: each is followed to its end.
    """

    @staticmethod
    def forward(ctx: Any, cost: Tensor, begin: Tensor, sweeps: int) -> Tensor:
        """[G, 8, h, w], [G, h, w] -> [G, h, w]."""
        v = begin
        for _ in range(sweeps):
            nearer = torch.minimum(v, (cost + around(v)).amin(1))
            if torch.equal(nearer, v):
                break
            v = nearer
        best, move = (cost + around(v)).min(1)
        ends = begin <= best
        h, w = v.shape[-2:]
        ahead = torch.tensor([y * w + x for y, x in MOVES], device=v.device)[move]
        here = torch.arange(h * w, device=v.device).view(h, w)
        following = torch.where(ends, here, here + ahead).clamp(0, h * w - 1)
        ctx.save_for_backward(following.flatten(1), move.flatten(1), ends.flatten(1))
        return v

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Of v [G, h, w]: those of c and begin."""
        following, move, ends = ctx.saved_tensors
        shape, going = gradients[0].shape, gradients[0].flatten(1)
        passed, ended = torch.zeros_like(going), torch.zeros_like(going)
        for _ in range(going.shape[1]):  # a way without a circle has no more places
            ended += going * ends
            going = going * ~ends
            if not going.any():
                break
            passed += going
            going = torch.zeros_like(going).scatter_add_(1, following, going)
        cost = passed.new_zeros(len(passed), len(MOVES), passed.shape[1]).scatter_(1, move[:, None], passed[:, None])
        return cost.view(len(cost), len(MOVES), *shape[1:]), ended.view(shape), None


def _each(layer: nn.Module, maps: Tensor) -> Tensor:
    """A layer for each of G x S maps [G, S, c, h, w]."""
    found: Tensor = layer(maps.flatten(0, 1).contiguous(memory_format=torch.channels_last))
    return found.view(*maps.shape[:2], *found.shape[1:])


def around(v: Tensor) -> Tensor:
    """What the eight places around each say, [G, h, w] -> [G, 8, h, w]."""
    h, w = v.shape[-2:]
    padded = F.pad(v, (1, 1, 1, 1), value=FAR)
    return torch.stack([padded[:, 1 + y : 1 + y + h, 1 + x : 1 + x + w] for y, x in MOVES], 1)
