"""A critic's lessons from memory: the shortest ways along what was walked.

Legend: B rows of the memory, N moments of each, D state, G goals, S states for each, K intrinsic terms.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from lightning_jepa.stages.critic_targets import Learner, Lesson

NO_WAY = 1e6  # steps
STEEP = 10.0  # the most that a squared error is weighed up by


class _Walk(NamedTuple):
    """States at moments of a walk, and how far each is from each."""

    states: Tensor  # half [N, D]
    steps: Tensor  # [N, N]


class WalkedWays:
    """How long it is from one remembered state to another, by dynamic programming on the walk that led past both.

        cost = u (1 - gamma^n) / (1 - gamma),   n: steps of the shortest way

    A walk that comes by the same place twice has a short cut there. Where one way alone joins any two places,
    every shortest way within a walk is the true one; the walks have to be long enough to lead past places that are far
    apart. Nothing is imagined, so no way leads through a wall. Two states are at one place if they are near each other
    as they are: a metric may fold, and one false short cut in a walk makes all its ways wrong. Each lesson is drawn
    from many walks: what a critic of ways lacks longest is layouts. Errors count by their share of the way.

    Args:
        goals: G, each of a walk of its own.
        states: S, of the same walk.
        walks: how many are kept to draw from; the oldest go.
        stride: steps of the critic's level between successive moments.
        near: two moments are at one place if their states are at most so many steps apart. Less than a wall is thick.
            (How far a step leads in the space of states, the .9 quantile of successive moments says, on average over
            all calls: some go by in front of a wall.)

    Raises:
        ValueError: if a number is not positive.
    """

    preparation = None

    def __init__(self, goals: int, states: int, walks: int = 512, stride: int = 1, near: float = 1.6) -> None:
        if min(goals, states, walks, stride, near) <= 0:
            raise ValueError(
                f"goals={goals}, states={states}, walks={walks}, stride={stride}, near={near}: give numbers above zero"
            )
        self.goals, self.states, self.stride, self.near = goals, states, stride, near
        self._walks = deque[_Walk](maxlen=walks)
        self._step, self._seen = 0.0, 0  # in the states' unit; one batch alone says it 5 % too small or too large

    def unseen(self) -> WalkedWays:
        """See `CriticTarget`. It keeps walks of its own."""
        return WalkedWays(self.goals, self.states, self._walks.maxlen or 1, self.stride, self.near)

    @torch.no_grad()
    def __call__(self, learner: Learner) -> Lesson:
        """See `CriticTarget`: states [G, S, D], goals [G, 1, D], u [G, 1, K] and cost [G, S].

        Raises:
            ValueError: if there is another intrinsic term than the goal's, or no walk leads anywhere.
        """
        if list(learner.intrinsic.names) != ["goal"]:
            raise ValueError(f"ways lead to goals, and the intrinsic cost has {list(learner.intrinsic.names)}")
        memory, generator = learner.memory, learner.generator
        steps = self.steps(memory.state, memory.episode, memory.time)
        for states, away in zip(memory.state, steps, strict=True):
            if ((away > 0) & (away < NO_WAY)).any():
                self._walks.append(_Walk(states.half(), away))
        if not self._walks:
            raise ValueError("nothing was walked: critic.data.levels need windows of two frames or more")
        drawn = [self._walks[k] for k in torch.randint(len(self._walks), (self.goals,), generator=generator).tolist()]
        goals, states, away = map(torch.stack, zip(*(self._lesson(walk, generator) for walk in drawn), strict=True))
        u = learner.weighing(self.goals, generator).to(goals.device)[:, None]
        gamma = learner.critic.discount
        cost = u[..., 0] * (1 - gamma**away) / (1 - gamma)
        # Squared errors of steps: those of discounted sums hardly tell far from farther.
        steep = gamma ** (-2 * away)
        weight = steep.clamp_max(STEEP) / (away + self.stride)
        return Lesson(states.float(), goals.float(), u, cost, weight / weight.mean())

    def steps(self, states: Tensor, episode: Tensor, time: Tensor) -> Tensor:
        """Shortest ways between moments with states [B, N, D], whose episodes and times are [B, N].

        Returns:
            Steps of the level, [B, N, N]; `NO_WAY` or more between moments that no walk joins.
        """
        same = (episode[:, :, None] == episode[:, None]) & (episode[:, :, None] >= 0)
        successive = same & ((time[:, :, None] - time[:, None]).abs() == 1)
        apart = torch.cdist(states.float(), states.float())
        if not successive.any():
            return torch.full_like(apart, NO_WAY)
        self._seen += 1
        self._step += (float(apart[successive].quantile(0.9)) - self._step) / self._seen
        apart = apart * self.stride / max(self._step, 1e-9)
        away = torch.where(same & (apart <= self.near), apart, NO_WAY)
        away = torch.where(successive, away.clamp_max(self.stride), away)
        for by in range(away.shape[1]):
            away = torch.minimum(away, away[:, :, by, None] + away[:, by, None])
        return away

    def _lesson(self, walk: _Walk, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """A goal [1, D], states [S, D] from which a way leads there, and its steps [S]."""
        leads = walk.steps < NO_WAY
        goal = _any(leads.sum(1) > 1, 1, generator)
        states = _any(leads[goal[0]], self.states, generator)
        return walk.states[goal], walk.states[states], walk.steps[states, goal]


def _any(wanted: Tensor, count: int, generator: Generator) -> Tensor:
    """Which of those that are wanted [N], drawn with replacement: [count]."""
    return torch.multinomial(wanted.float().cpu(), count, replacement=True, generator=generator).to(wanted.device)
