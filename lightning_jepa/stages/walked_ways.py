"""A critic's lessons from memory: the shortest ways along what was walked.

Legend: B rows of the memory, N moments of each, D state, n pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_jepa.stages.critic_targets import Learner, Lesson

NO_WAY = 1e6  # steps


class WalkedWays:
    """How long it is from one remembered state to another, by dynamic programming on the walk that led past both.

        cost = u (1 - gamma^n) / (1 - gamma),   n: steps of the shortest way

    A walk that comes by the same place twice, as the metric sees it, has a short cut there. Where there is one way
    alone between any two places, every shortest way within a walk is the true one; the walks have to be long enough to
    lead past places that are far apart. Pairs are drawn in proportion to their distance, or near ones would be nearly
    all. Nothing is imagined, so no way leads through a wall.

    Args:
        batch: n.
        stride: steps of the critic's level between successive moments.
        near: two moments are at one place if they are at most so many steps apart, as the metric sees it. Less than a
            wall is thick. (What a step is, the .9 quantile of successive moments says: some go by in front of a wall.)

    Raises:
        ValueError: if a number is not positive.
    """

    preparation = None

    def __init__(self, batch: int, stride: int = 1, near: float = 1.4) -> None:
        if min(batch, stride, near) <= 0:
            raise ValueError(f"batch={batch}, stride={stride}, near={near}: give numbers above zero")
        self.batch, self.stride, self.near = batch, stride, near

    def unseen(self) -> WalkedWays:
        """See `CriticTarget`."""
        return self

    @torch.no_grad()
    def __call__(self, learner: Learner) -> Lesson:
        """See `CriticTarget`.

        Raises:
            ValueError: if there is another intrinsic term than the goal's, or no walk leads anywhere.
        """
        if list(learner.intrinsic.names) != ["goal"]:
            raise ValueError(f"ways lead to goals, and the intrinsic cost has {list(learner.intrinsic.names)}")
        memory, generator = learner.memory, learner.generator
        steps = self.steps(learner.metric(memory.state), memory.episode, memory.time)
        share = torch.where(steps < NO_WAY, steps, 0.0).flatten().cpu()
        if not share.any():
            raise ValueError("nothing was walked: critic.data.levels need windows of two frames or more")
        pair = torch.multinomial(share, self.batch, replacement=True, generator=generator).to(steps.device)
        moments = steps.shape[1]
        rows, begin, end = pair // moments**2, pair // moments % moments, pair % moments
        u = learner.weighing(self.batch, generator).to(steps.device)
        gamma = learner.critic.discount
        cost = u[:, 0] * (1 - gamma ** steps[rows, begin, end]) / (1 - gamma)
        return Lesson(memory.state[rows, begin], memory.state[rows, end], u, cost)

    def steps(self, places: Tensor, episode: Tensor, time: Tensor) -> Tensor:
        """Shortest ways between moments at places [B, N, M] of the metric, whose episodes and times are [B, N].

        Returns:
            Steps of the level, [B, N, N]; `NO_WAY` or more between moments that no walk joins.
        """
        same = (episode[:, :, None] == episode[:, None]) & (episode[:, :, None] >= 0)
        successive = same & ((time[:, :, None] - time[:, None]).abs() == 1)
        apart = torch.cdist(places.float(), places.float())
        if not successive.any():
            return torch.full_like(apart, NO_WAY)
        apart = apart * self.stride / apart[successive].quantile(0.9).clamp_min(1e-9)
        away = torch.where(same & (apart <= self.near), apart, NO_WAY)
        away = torch.where(successive, away.clamp_max(self.stride), away)
        for by in range(away.shape[1]):
            away = torch.minimum(away, away[:, :, by, None] + away[:, by, None])
        return away
