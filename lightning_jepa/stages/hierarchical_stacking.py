"""Training stage 2: one more level on top of a world model, over longer steps and with less detail.

Legend: B batch, T time, C H W image, D state below, A action, M macro-action, n steps of level 1 in one of the level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_jepa.stages.jepa_pretraining import JEPAPretraining
from lightning_jepa.stages.schedule import rise_and_fall
from lightning_jepa.types import Window
from lightning_jepa.world_model.hierarchy import HierarchicalJEPA
from lightning_jepa.world_model.jepa import JEPA
from lightning_jepa.world_model.level import Level


class HierarchicalStacking(JEPAPretraining):
    """Train a level as a JEPA is trained, on the states of the level below, which stay as they are (paper section 4.6).

        loss = sum_i weight_i term_i,   terms = prediction + those of each criterion [+ contrast], all of s2 and a2

    A level with a policy to reach its states has one more term, `reach`, which teaches nothing else.

    Windows hold the world's steps. Those of the first level of a batch have the stride of a step of this level; or, for
    a level that pools, that of a step of the level below. The others teach the metric, and have a multiple of it.

    Args:
        previous: the stage that trained the levels below.
        level: Enc2, Pred2 and Act2.
        joint: learning rate of all levels below, as a share of that of this one; 0 leaves them as they are. Their own
            loss is then a part of this one's, on the windows that come after the first `windows` ones.
        windows: levels of a batch that are this level's.
        criteria, weights, optimizer, horizon, every, warm_up, settled: see `JEPAPretraining`; of this level.
        geometry: what makes a criterion of states and the steps between them of the level's `metric`; or none.

    Raises:
        ValueError: if a share or a count is out of its range; with the first batch, if windows do not fit the levels.
    """

    def __init__(
        self,
        previous: JEPAPretraining,
        level: Level,
        criteria: Mapping[str, nn.Module],
        weights: Mapping[str, float],
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        horizon: int = 4,
        every: int = 2,
        warm_up: float = 0.05,
        geometry: Callable[..., nn.Module] | None = None,
        joint: float = 0.0,
        windows: int = 1,
        settled: float = 1.0,
    ) -> None:
        if not 0 <= joint <= 1 or windows < 1:
            raise ValueError(f"joint={joint}, windows={windows}: give a share between 0 and 1, and at least 1 level")
        below = previous.jepa
        base, lower = (below.base, below.above_base) if isinstance(below, HierarchicalJEPA) else (below, [])
        taught = None if geometry is None else geometry(metric=level.metric)
        super().__init__(level.jepa, criteria, weights, optimizer, horizon, every, warm_up, taught, settled=settled)
        self.jepa = HierarchicalJEPA(base, [*lower, level])
        self.joint, self.windows = joint, windows
        self.previous = previous.requires_grad_(joint > 0)

    @property
    def hierarchy(self) -> HierarchicalJEPA:
        """All levels."""
        assert isinstance(self.jepa, HierarchicalJEPA)
        return self.jepa

    @property
    def level(self) -> Level:
        """What is trained."""
        return self.hierarchy.level(self.hierarchy.depth)

    @property
    def model(self) -> JEPA:
        """The level's JEPA."""
        return self.level.jepa

    @property
    def metric(self) -> nn.Module:
        """The space in which distances of states of level 1 are costs."""
        return self.previous.metric

    def on_fit_start(self) -> None:
        """All modules start in training mode, those of a stage that was loaded too."""
        self.train()

    def on_train_start(self) -> None:
        """What is frozen stays as in evaluation."""
        if not self.joint:
            self.previous.eval()

    def viewed(self, windows: tuple[Window, ...]) -> tuple[Window, ...]:
        """The windows of this level, with states of the level below in the place of pictures.

        Raises:
            ValueError: if their strides do not fit the levels.
        """
        dense, *others = windows[: self.windows]
        return (self._dense(dense), *(self._apart(window) for window in others))

    def terms(self, windows: tuple[Window, ...]) -> tuple[dict[str, Tensor], Tensor]:
        """See `JEPAPretraining.terms`."""
        terms, states = super().terms(windows)
        if self.level.reach is not None:
            s, chunks = states.detach(), self.hierarchy.chunks(windows[0].actions, self.hierarchy.depth)
            terms["reach"] = self.level.reach.misfit(s[:, :-1], s[:, 1:], chunks.detach()).mean()
        return terms, states

    def acted(self, window: Window) -> Tensor:
        """Macro-actions, [B, T - 1, M]."""
        return self.hierarchy.macros(window.actions, self.hierarchy.depth)

    def apart(self, window: Window) -> int:
        """How many steps of this level there are between the states of a window."""
        return window.actions.shape[2] // self.hierarchy.stride(self.hierarchy.depth)

    def training_step(self, batch: tuple[Window, ...], batch_idx: int) -> Tensor:
        """The weighted sum of all terms of this level, and of those below where they learn too.

        Raises:
            ValueError: if there are windows that nobody reads.
        """
        if len(batch) > self.windows and not self.joint:
            raise ValueError(
                f"data.levels has {len(batch)} levels of windows, stage.windows={self.windows} of which are read: set "
                "it to their number; the others would be for the levels below, which do not learn (joint=0)"
            )
        loss = super().training_step(batch, batch_idx)
        chunks = self.hierarchy.chunks(self._blocks(batch[0]), self.hierarchy.depth)
        self.level.remember(chunks[:, 0])
        if self.joint:
            loss_below = self._loss_below(batch[self.windows :])
            self.log("train/below", loss_below)
            loss = loss + loss_below
        return loss

    def _loss_below(self, windows: tuple[Window, ...]) -> Tensor:
        """Of all levels below, each on its own windows and by its own weights: what keeps them from collapsing."""
        stage, losses = self.previous, []
        while True:
            if not windows:
                raise ValueError(
                    f"joint={self.joint}: the levels below learn too, and there are no windows for all of them: add "
                    "theirs to data.levels, after those of this level and from the highest level down"
                )
            losses.append(stage.weighted(stage.terms(stage.viewed(windows))[0]))
            if not isinstance(stage, HierarchicalStacking):
                return torch.stack(losses).sum()
            windows, stage = windows[stage.windows :], stage.previous

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer, one schedule; what is below learns more slowly, if at all."""
        below = {id(weight) for weight in self.previous.parameters()}
        own = [weight for weight in self.parameters() if id(weight) not in below]
        groups = self._split(own)
        if self.joint:
            groups.append({"params": list(self.previous.parameters())})
        optimizer = self.optimizer(groups)
        for group in optimizer.param_groups[len(self._done) :]:
            group["lr"] *= self.joint
        return rise_and_fall(optimizer, self.trainer, self.warm_up, self._done)

    def _standardise(self, mean: Tensor, std: Tensor) -> None:
        """Pictures are what the first level sees."""

    def _dense(self, window: Window) -> Window:
        """Successive steps of this level."""
        states = self.level.pooled(self._below(window))
        every = slice(None, None, self.level.steps if self.level.pool > 1 else 1)
        shown = window._replace(truth=window.truth[:, every], times=window.times[:, every])
        return self._window(shown, states[:, every], self._blocks(window))

    def _apart(self, window: Window) -> Window:
        """States some steps of this level apart."""
        unit = self.hierarchy.stride(self.hierarchy.depth)
        stride = window.actions.shape[2]
        if stride % unit or self.level.pool > 1:
            raise ValueError(
                f"frames {stride} steps apart, a step of this level has {unit}: give data.levels strides that are "
                "multiples of it, and no second one to a level that pools"
            )
        return self._window(window, self._below(window), window.actions)

    def _below(self, window: Window) -> Tensor:
        """States of the level below, [B, T, D]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.joint > 0):
            states = self.hierarchy.encode(window.observations, window.body)
            return self.hierarchy.lift(states, self.hierarchy.depth - 1)

    def _blocks(self, window: Window) -> Tensor:
        """Actions in blocks of a step of this level, [B, T', n, A].

        Raises:
            ValueError: if the windows cannot be cut into such steps.
        """
        unit, stride = self.hierarchy.stride(self.hierarchy.depth), window.actions.shape[2]
        steps = self.level.steps if self.level.pool > 1 else 1
        if stride * steps != unit or window.actions.shape[1] % steps:
            raise ValueError(
                f"windows of {window.actions.shape[1] + 1} frames, {stride} steps apart: a step of this level has "
                f"{unit}. Give the first of data.levels stride {unit // steps}, and a length of 1 more than a multiple "
                f"of {steps}"
            )
        return window.actions.unflatten(1, (-1, steps)).flatten(2, 3)

    @staticmethod
    def _window(window: Window, states: Tensor, actions: Tensor) -> Window:
        return window._replace(observations=states, actions=actions, body=states.new_zeros(*states.shape[:2], 0))
