"""What the critic learns to expect: three ways to say what cost is still to come.

Each takes what is remembered and gives states, goals, weights u and the cost that followed, or would.

Legend: B sampled states, n steps ahead, D state, K intrinsic terms.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn

from lightning_jepa.cost.critic import Critic
from lightning_jepa.cost.intrinsic import IntrinsicCost
from lightning_jepa.memory.episodic import EpisodicMemory
from lightning_jepa.protocols import WorldModel
from lightning_jepa.stages.imagined_plans import ImaginedPlans, Preparation, Weighing
from lightning_jepa.types import Modulation


class Lesson(NamedTuple):
    """What the critic is shown, pair by pair or as B goals with S states each."""

    states: Tensor  # [B, D] or [B, S, D]
    goals: Tensor  # [B, D] or [B, 1, D]
    u: Tensor  # [B, K] or [B, 1, K]
    cost: Tensor  # [B] or [B, S]: to expect
    weight: Tensor | None = None  # of squared errors, as many; none: one each


class Learner(NamedTuple):
    """What a target may look at."""

    memory: EpisodicMemory
    world_model: WorldModel
    metric: nn.Module
    intrinsic: IntrinsicCost
    critic: Critic  # the slowly following copy
    weighing: Weighing
    generator: Generator


class CriticTarget(Protocol):
    """A way to say what cost is still to come."""

    preparation: Preparation | None  # what is made beside the first steps, which are slower for it

    def unseen(self) -> CriticTarget:
        """A target of the same kind that knows nothing of what this one has made, for validation."""
        ...

    def __call__(self, learner: Learner) -> Lesson:
        """A batch to learn from."""
        ...


class DeltaTarget:
    """TC(s[tau]) = u . IC(s[tau + delta]): the paper's simplest critic (section 3.3). Goals are states that came later.

    Its critic has discount 0: what it expects is one energy, not a sum.

    Args:
        batch: B.
        delta: steps ahead.
        reach: largest number of steps from a state to the later one that serves as its goal.
    """

    preparation = None

    def __init__(self, batch: int, delta: int, reach: int) -> None:
        self.batch, self.delta, self.reach = batch, delta, reach

    def unseen(self) -> DeltaTarget:
        """See `CriticTarget`."""
        return self

    @torch.no_grad()
    def __call__(self, learner: Learner) -> Lesson:
        """See `CriticTarget`."""
        slots = _moments(learner.memory, self.batch, self.delta, learner.generator)
        goals = _later(learner.memory, slots, self.reach, learner.generator)
        u = learner.weighing(self.batch, learner.generator).to(goals.device)
        states = learner.memory.state[slots.rows[:, None], slots.steps]
        energies = learner.intrinsic(states[:, None, -1:], _led(learner.memory, slots)[:, None, -1:], Modulation(goals))
        return Lesson(states[:, 0], goals, u, (energies[:, 0, 0] * u).sum(-1))


class ReturnTarget:
    """lambda-returns of what was remembered, with the critic's copy for what came after (paper section 3.3).

        G[n] = c[n] + gamma TC(s[n]),  G[k] = c[k] + gamma ((1 - lambda) TC(s[k]) + lambda G[k + 1]),  c = u . IC

    What is remembered was done by whoever collected it. An expectile below one half (set in the stage) learns what it
    costs under the better of what was seen, and so joins pieces of different ways.

    Args:
        batch: B.
        steps: n.
        trace: lambda, 1 for n-step returns.
        reach: largest number of steps from a state to the later one that serves as its goal.

    Raises:
        ValueError: if lambda is not in [0, 1].
    """

    preparation = None

    def __init__(self, batch: int, steps: int, trace: float, reach: int) -> None:
        if not 0 <= trace <= 1:
            raise ValueError(f"trace={trace}: give a number between 0 and 1")
        self.batch, self.steps, self.trace, self.reach = batch, steps, trace, reach

    def unseen(self) -> ReturnTarget:
        """See `CriticTarget`."""
        return self

    @torch.no_grad()
    def __call__(self, learner: Learner) -> Lesson:
        """See `CriticTarget`."""
        slots = _moments(learner.memory, self.batch, self.steps, learner.generator)
        goals = _later(learner.memory, slots, self.reach, learner.generator)
        u = learner.weighing(self.batch, learner.generator).to(goals.device)
        states = learner.memory.state[slots.rows[:, None], slots.steps]
        modulation = Modulation(goals, u)
        led = _led(learner.memory, slots)
        energies = learner.intrinsic(states[:, None, 1:], led[:, None], modulation)[:, 0]
        cost = (energies * u[:, None]).sum(-1)
        judged = learner.critic(states[:, 1:], modulation)
        gamma, total = learner.critic.discount, judged[:, -1]
        for k in reversed(range(self.steps)):
            ahead = total if k == self.steps - 1 else (1 - self.trace) * judged[:, k] + self.trace * total
            total = cost[:, k] + gamma * ahead
        return Lesson(states[:, 0], goals, u, total)


class ProgrammeTarget:
    """What dynamic programming on imagined graphs finds: Mode-2's own estimate of the cost to come, learned by heart.

    Graphs are made around the first and the last remembered state of some rows in each step, until there are enough.

    Args:
        batch: B, less those drawn that nothing connects.
        plans: makes and keeps the graphs.
        rows: graphs to make in one step.
    """

    def __init__(self, batch: int, plans: ImaginedPlans, rows: int = 4) -> None:
        self.batch, self.plans, self.rows = batch, plans, rows

    def unseen(self) -> ProgrammeTarget:
        """See `CriticTarget`. It makes `rows` graphs, and no cache tells it those of training."""
        plans = self.plans
        own = ImaginedPlans(plans.make_explorer, self.rows, plans.weights_each, plans.discount)
        return ProgrammeTarget(self.batch, own, self.rows)

    @property
    def preparation(self) -> Preparation | None:
        """See `CriticTarget`."""
        return self.plans.preparation

    @torch.no_grad()
    def __call__(self, learner: Learner) -> Lesson:
        """See `CriticTarget`."""
        if self.plans.missing:
            first, last = learner.memory.ends()
            self.plans.add(
                first[: self.rows],
                last[: self.rows],
                learner.world_model,
                learner.metric,
                learner.intrinsic,
                learner.weighing,
                learner.generator,
            )
        drawn = self.plans.draw(self.batch, learner.generator)
        return Lesson(drawn.states, drawn.goals, drawn.u, drawn.cost)


class _Moments(NamedTuple):
    rows: Tensor  # [B]
    steps: Tensor  # slots of tau, tau + 1, ..., tau + n: [B, n + 1]


def _moments(memory: EpisodicMemory, count: int, steps: int, generator: Generator) -> _Moments:
    """Random stretches of n steps."""
    rows, early, _ = memory.pairs(steps)
    if len(rows) == 0:
        raise ValueError(
            f"no episode of {steps} steps is remembered: critic.data.levels need windows of {steps + 1} frames or more"
        )
    chosen = torch.randint(len(rows), (count,), generator=generator).to(rows.device)
    ahead = torch.arange(steps + 1, device=rows.device)
    return _Moments(rows[chosen], (early[chosen][:, None] + ahead) % memory.capacity)


def _later(memory: EpisodicMemory, slots: _Moments, reach: int, generator: Generator) -> Tensor:
    """States [B, D] of the same episodes, up to `reach` steps after each moment, as far as the episode goes."""
    begin, rows = slots.steps[:, 0], slots.rows
    ahead = torch.randint(reach + 1, (len(rows),), generator=generator).to(rows.device)
    found = (begin + ahead) % memory.capacity
    same = (memory.episode[rows, found] == memory.episode[rows, begin]) & (
        memory.time[rows, found] == memory.time[rows, begin] + ahead
    )
    return memory.state[rows, torch.where(same, found, slots.steps[:, -1])]


def _led(memory: EpisodicMemory, slots: _Moments) -> Tensor:
    """The actions [B, n, A] that led to tau + 1, ..., tau + n."""
    return memory.action[slots.rows[:, None], slots.steps[:, :-1]]
