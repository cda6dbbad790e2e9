"""Training stage 3: the critic learns from memory what cost is still to come (paper section 3.3).

Legend: B batch, T time, D state, K intrinsic terms, M members.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from torchmetrics.functional import spearman_corrcoef

from lightning_jepa.cost.cost import Cost
from lightning_jepa.cost.critic import Critic
from lightning_jepa.cost.intrinsic import IntrinsicCost
from lightning_jepa.layers import follow
from lightning_jepa.memory.episodic import EpisodicMemory
from lightning_jepa.protocols import WorldModel
from lightning_jepa.stages.above import StageAbove
from lightning_jepa.stages.critic_targets import CriticTarget, Learner, Lesson
from lightning_jepa.stages.imagined_plans import Preparation
from lightning_jepa.stages.jepa_pretraining import JEPAPretraining
from lightning_jepa.stages.schedule import rise_and_fall
from lightning_jepa.stages.weighing import UniformWeights
from lightning_jepa.types import Window
from lightning_jepa.world_model.hierarchy import HierarchicalJEPA


class CriticTraining(StageAbove):
    """Minimise the expectile of (target - TC(s; goal, u))^2 over the members of the critic.

        loss = mean |tau - [target < TC]| (target - TC)^2,  in units of the largest sum of a term of weight 1

    Windows from the stream are encoded and written to the episodic memory; a target draws from it states, goals,
    weights u and what cost followed. World model and intrinsic cost are frozen; states are read, so nothing flows back.

    Args:
        previous: the pretraining stage that this one builds on.
        intrinsic: what makes the intrinsic cost of a `metric`.
        critic: to be trained.
        target: says what is still to come.
        u: weights to learn for.
        optimizer: from parameters to an optimizer.
        expectile: tau; one half is the mean, less prefers the cheaper of what was seen.
        follow: share by which the target's copy of the critic follows it in each step.
        memory_windows: moments kept of each row of a batch, in windows.
        warm_up: share of the steps in which the learning rate rises, before it falls along a cosine.
        seed: of what is drawn.
        level: of a hierarchy, whose states the critic judges and whose metric the intrinsic cost takes.
        view: what is done to a window of training before it is encoded, such as `Turned`; none for it as it is.

    Raises:
        ValueError: if a number is out of its range, u does not name the intrinsic terms, or there is no such level.
    """

    policy = None  # comes with the stage above

    def __init__(
        self,
        previous: JEPAPretraining,
        intrinsic: Callable[..., IntrinsicCost],
        critic: Critic,
        target: CriticTarget,
        u: UniformWeights,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        expectile: float = 0.5,
        follow: float = 0.02,
        memory_windows: int = 1,
        warm_up: float = 0.05,
        seed: int = 0,
        level: int = 1,
        view: Callable[[Window, Generator], Window] | None = None,
    ) -> None:
        super().__init__(previous)
        if not 0 < expectile < 1 or not 0 < follow <= 1 or memory_windows < 1:
            raise ValueError(
                f"expectile={expectile}, follow={follow}, memory_windows={memory_windows}: give numbers between 0 and "
                "1 and at least 1 window"
            )
        self.level, self.view = level, view
        self.intrinsic = intrinsic(metric=self._metric)
        u.check(self.intrinsic)
        if critic.terms != len(self.intrinsic.names):
            raise ValueError(f"the critic is made for {critic.terms} terms, there are {list(self.intrinsic.names)}")
        self.critic, self.target, self.u = critic, target, u
        self._unseen, self._held_out = target.unseen(), list[Lesson]()  # the same of layouts never trained on
        self.follower = copy.deepcopy(critic).requires_grad_(False)
        self.optimizer, self.warm_up = optimizer, warm_up
        self.expectile, self.follow, self.memory_windows = expectile, follow, memory_windows
        self._memories: list[EpisodicMemory] = []  # none before the first batch tells its sizes; no part of checkpoints
        self._generator = Generator().manual_seed(seed)

    @property
    def cost(self) -> Cost:
        """Intrinsic cost and critic: what plans of the level minimise."""
        return Cost(self.intrinsic, {"learned": self.critic}, self.critic.discount)

    def on_fit_start(self) -> None:
        """The critic will be one of this intrinsic cost.

        Raises:
            ValueError: if it was one of another before.
        """
        super().on_fit_start()
        self.critic.check(self.intrinsic.fingerprint)
        self.critic.sign(self.intrinsic.fingerprint)

    def on_fit_end(self) -> None:
        """The intrinsic cost is what it was.

        Raises:
            ValueError: if something changed it.
        """
        self.critic.check(self.intrinsic.fingerprint)

    @torch.no_grad()
    def remember(self, window: Window) -> None:
        """Encode a window and write it to memory, a new episode in each row."""
        states = self.model.encode(window.observations, window.body)
        done = self._actions(window)
        actions = torch.cat([done, torch.zeros_like(done[:, :1])], 1)
        if not self._memories or len(self._memories[0].time) != len(states):
            sizes = (states.shape[2], actions.shape[2], window.energies.shape[2])
            memory = EpisodicMemory(len(states), self.memory_windows * states.shape[1], *sizes)
            self._memories = [memory.to(states.device)]
        (memory,) = self._memories
        memory.begin()
        memory.write(states, window.energies, states.new_zeros(states.shape[:2]), actions)

    def errors(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """What the critic lacks, in units of the largest sum of a term of weight 1, [M, ...]; what it expects."""
        expected = self.critic.judge(lesson.states, lesson.goals, lesson.u)
        return (lesson.cost - expected) * (1 - self.critic.discount), expected.mean(0)

    def learner(self) -> Learner:
        """What targets draw from."""
        parts = (
            self._memories[0],
            self.model,
            self._metric,
            self.intrinsic,
            self.follower,
            self.u,
            self._generator,
        )
        return Learner(*parts)

    @property
    def model(self) -> WorldModel:
        """The level as a world model."""
        found = self.previous.jepa
        return found if self.level == 1 else self._hierarchy.seen(self.level)

    @property
    def _metric(self) -> nn.Module:
        """The space in which distances are costs of the level."""
        return self.metric if self.level == 1 else self._hierarchy.level(self.level).metric

    @property
    def _hierarchy(self) -> HierarchicalJEPA:
        found = self.previous.jepa
        if not isinstance(found, HierarchicalJEPA):
            raise ValueError(
                f"a critic of level {self.level}, but the stage below has one level: stack the others first "
                "(train=level2), or set critic.stage.level=1"
            )
        return found

    def _actions(self, window: Window) -> Tensor:
        """What was done between the states, [B, T - 1, A]; unknown (NaN) where that is no single action."""
        steps = 1 if self.level == 1 else self._hierarchy.stride(self.level)
        size = window.actions.shape[-1] if self.level == 1 else self._hierarchy.level(self.level).macro.size
        if window.actions.shape[2] != steps:
            return window.actions.new_full((*window.actions.shape[:2], size), torch.nan)
        return window.actions[:, :, 0] if self.level == 1 else self._hierarchy.macros(window.actions, self.level)

    @property
    def preparation(self) -> Preparation | None:
        """Graphs, which the first steps make."""
        return self.target.preparation

    def training_step(self, batch: tuple[Window, ...], batch_idx: int) -> Tensor:
        """Remember, draw, learn."""
        window = batch[0]
        self.remember(window if self.view is None else self.view(window, self._generator))
        lesson = self.target(self.learner())
        error, expected = self.errors(lesson)
        asymmetry = torch.where(error < 0, 1 - self.expectile, self.expectile)
        squared = error.square() if lesson.weight is None else error.square() * lesson.weight
        loss = 2 * (asymmetry * squared).mean()
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/rank_correlation", rank_correlation(expected.detach(), lesson))
        return loss

    def validation_step(self, batch: tuple[Window, ...], batch_idx: int) -> None:
        """The same of one batch of episodes in layouts that were never trained on; it stays the same."""
        if batch_idx > 0:
            return
        if not self._held_out:
            self._memories.clear()
            self.remember(batch[0])
            self._held_out.append(self._unseen(self.learner()))
            self._memories.clear()
        (lesson,) = self._held_out
        error, expected = self.errors(lesson)
        found = {"val/loss": error.square().mean(), "val/rank_correlation": rank_correlation(expected, lesson)}
        self.log_dict(found, batch_size=expected.numel(), sync_dist=True)

    def on_train_batch_end(self, outputs: object, batch: tuple[Window, ...], batch_idx: int) -> None:
        """The copy follows."""
        follow(self.follower, self.critic, self.follow)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer for the critic alone."""
        return rise_and_fall(self.optimizer(self.critic.parameters()), self.trainer, self.warm_up)


def rank_correlation(expected: Tensor, lesson: Lesson) -> Tensor:
    """Between the costs that a critic expects and those of the lesson, whatever their shape."""
    return spearman_corrcoef(expected.flatten(), lesson.cost.flatten())
