"""Training stage 4: what Mode-2 found is compiled into the policy (paper section 3.1.3).

Legend: B batch, T time, H actions of a plan, A action, D state, R rows where Mode-2 planned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from lightning_jepa.actor.policy import MixturePolicy
from lightning_jepa.cost.cost import Cost
from lightning_jepa.cost.intrinsic import IntrinsicCost
from lightning_jepa.stages.above import StageAbove
from lightning_jepa.stages.critic_training import CriticTraining
from lightning_jepa.stages.imagined_plans import ImaginedPlans, Preparation
from lightning_jepa.stages.schedule import rise_and_fall
from lightning_jepa.types import Modulation, Window

TERMS = ("perceived", "imagined", "programme")


class ActorDistillation(StageAbove):
    """Minimise D(a^[t], A(s[t])) over actions a^ that Mode-2 found.

        loss = sum_i weight_i term_i

    `perceived`: the first action of plans in the stream, at what was seen there. `imagined`: the others, at the states
    that the plan imagines. `programme`: what dynamic programming finds on imagined graphs, for all goals of a layout.
    Everything but the policy is frozen; states and plans are constants.

    Args:
        previous: the critic's stage, which this one builds on.
        policy: to be trained.
        plans: makes and keeps graphs.
        weights: of the three terms.
        optimizer: from parameters to an optimizer.
        drawn: pairs of states and goals of graphs in each step.
        rows: graphs to make in one step, until there are enough.
        warm_up: share of the steps in which the learning rate rises, before it falls along a cosine.
        seed: of what is drawn.

    Raises:
        ValueError: if the weights are not those of the terms; with the first batch, if nothing in it was planned.
    """

    def __init__(
        self,
        previous: CriticTraining,
        policy: MixturePolicy,
        plans: ImaginedPlans,
        weights: Mapping[str, float],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        drawn: int = 384,
        rows: int = 4,
        warm_up: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__(previous)
        if set(weights) != set(TERMS) or min(weights.values()) < 0:
            raise ValueError(f"stage.weights={dict(weights)}: give a number of 0 or more for each of {list(TERMS)}")
        if policy.terms != len(previous.intrinsic.names):
            raise ValueError(f"the policy is made for {policy.terms} terms, there are {list(previous.intrinsic.names)}")
        self.policy, self.plans, self.weights, self.optimizer = policy, plans, dict(weights), optimizer
        self.drawn, self.rows, self.warm_up = drawn, rows, warm_up
        self._generator = Generator().manual_seed(seed)

    @property
    def intrinsic(self) -> IntrinsicCost:
        """What plans were judged by."""
        return self.previous.intrinsic

    @property
    def cost(self) -> Cost:
        """Intrinsic cost and critic: what plans minimise."""
        return self.previous.cost

    def on_fit_start(self) -> None:
        """The intrinsic cost is the critic's.

        Raises:
            ValueError: if it is another.
        """
        super().on_fit_start()
        self.previous.critic.check(self.intrinsic.fingerprint)

    def on_fit_end(self) -> None:
        """It still is.

        Raises:
            ValueError: if something changed it.
        """
        self.previous.critic.check(self.intrinsic.fingerprint)

    def terms(self, window: Window) -> dict[str, Tensor]:
        """The three terms, unweighted."""
        terms = self._planned(window)
        lesson = self.plans.draw(self.drawn, self._generator)
        terms["programme"] = self.policy.misfit(lesson.states, Modulation(lesson.goals, lesson.u), lesson.action).mean()
        return terms

    @property
    def preparation(self) -> Preparation | None:
        """Graphs, which the first steps make."""
        return self.plans.preparation

    def training_step(self, batch: tuple[Window, ...], batch_idx: int) -> Tensor:
        """The weighted sum of all terms."""
        self._imagine(batch[0])
        terms = self.terms(batch[0])
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        self.log_dict({f"train/{name}": term for name, term in terms.items()})
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Window, ...], batch_idx: int) -> None:
        """Plans that were made in layouts that no one trained in."""
        window = Window(*(part[batch[0].mask] for part in batch[0]))
        found = self._planned(window)
        rows = int(batch[0].mask.sum())
        self.log_dict({f"val/{name}": term for name, term in found.items()}, batch_size=rows, sync_dist=True)

    def _planned(self, window: Window) -> dict[str, Tensor]:
        """Terms of the plans in a window: the first of each row."""
        size = window.actions.shape[-1]
        made = window.plans[:, :, 0].isfinite().all(-1)
        if window.plans.shape[-1] == 0 or window.goal.shape[1] == 0 or not made.any():
            raise ValueError(
                "no plans are in this batch: train on shards that the agent collected in Mode-2 (distill.collection), "
                "with windows (distill.data.levels) longer than agent.replan_every"
            )
        rows = made.any(1)
        at = made[rows].long().argmax(1)
        some = torch.arange(len(at), device=at.device)
        plan = window.plans[rows][some, at, 0].unflatten(-1, (-1, size))
        with torch.no_grad():
            seen, felt = window.observations[rows][some, at], window.body[rows][some, at]
            s = self.jepa.encode(seen[:, None], felt[:, None])[:, 0]
            goal = self.jepa.encode(window.goal[rows][:, None])[:, 0]
            led = self.jepa.rollout(s, plan[:, None, :-1])[:, 0]
        u = window.weights[rows]
        ahead = plan.shape[1] - 1
        later = Modulation(goal.repeat_interleave(ahead, 0), u.repeat_interleave(ahead, 0))
        return {
            "perceived": self.policy.misfit(s, Modulation(goal, u), plan[:, 0]).mean(),
            "imagined": self.policy.misfit(led.flatten(0, 1), later, plan[:, 1:].flatten(0, 1)).mean(),
        }

    @torch.no_grad()
    def _imagine(self, window: Window) -> None:
        if self.plans.missing:
            ends = window.observations[: self.rows, [0]], window.goal[: self.rows, None]
            first = self.jepa.encode(ends[0], window.body[: self.rows, [0]])[:, 0]
            goal = self.jepa.encode(ends[1])[:, 0]
            self.plans.add(first, goal, self.jepa, self.metric, self.intrinsic, self.previous.u, self._generator)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer for the policy alone."""
        return rise_and_fall(self.optimizer(self.policy.parameters()), self.trainer, self.warm_up)
