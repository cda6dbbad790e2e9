"""What training stages share that build on another one."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import nn

from lightning_jepa.protocols import WorldModel


class StageAbove(L.LightningModule):
    """A stage on top of another one, which stays as it was trained.

    Args:
        previous: the stage below, whose weights are frozen.
    """

    def __init__(self, previous: Any) -> None:
        super().__init__()
        self.previous = previous.requires_grad_(False)

    @property
    def jepa(self) -> WorldModel:
        """The world model at the bottom."""
        found: WorldModel = self.previous.jepa
        return found

    @property
    def metric(self) -> nn.Module:
        """The space in which distances are costs."""
        found: nn.Module = self.previous.metric
        return found

    def on_fit_start(self) -> None:
        """All modules start in training mode, as Lightning wants them, and those of a stage that was loaded too."""
        self.train()

    def on_train_start(self) -> None:
        """What is frozen stays as in evaluation."""
        self.previous.eval()
