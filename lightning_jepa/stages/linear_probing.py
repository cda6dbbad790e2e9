"""What can be read off frozen states: a linear classifier of labels that shards carry.

Legend: B batch, T time, D state, Y classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassAccuracy

from lightning_jepa.stages.above import StageAbove
from lightning_jepa.stages.schedule import rise_and_fall
from lightning_jepa.types import Window


class LinearProbing(StageAbove):
    """Minimise the cross-entropy of softmax(W norm(s) + b) with the label of each picture.

    The measure of representations that hold whatever labels are asked of them: nothing but W and b is learned. Features
    are standardised by running statistics first, so that one rate serves encoders of any scale.

    Args:
        previous: the pretrained stage.
        classes: Y.
        label: the column of the data's truth that holds the class, a whole number.
        optimizer: from parameters to an optimizer.
        finetune: let the encoder learn too: the control of a network of equal size with labels.
        warm_up: share of the steps in which the learning rate rises, before it falls along a cosine.

    Raises:
        ValueError: if there are fewer than two classes; with the data, if they lack the label or hold another class.
    """

    cost = policy = None

    def __init__(
        self,
        previous: Any,
        classes: int,
        label: str,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        finetune: bool = False,
        warm_up: float = 0.05,
    ) -> None:
        super().__init__(previous)
        if classes < 2:
            raise ValueError(f"classes={classes}: give at least 2")
        self.classes, self.label, self.optimizer, self.warm_up = classes, label, optimizer, warm_up
        self.encoder = previous.jepa.encoder.requires_grad_(finetune)
        size = previous.jepa.external_size
        self.norm, self.head = nn.BatchNorm1d(size, affine=False), nn.Linear(size, classes)
        self.accuracy = MulticlassAccuracy(classes, average="micro")
        self._column = 0

    def setup(self, stage: str) -> None:
        """Find the label among the data's truth."""
        if stage == "fit":
            names = list(self.trainer.datamodule.manifest.truth_names)  # type: ignore[attr-defined]  # set by fit
            if self.label not in names:
                raise ValueError(f"probe.stage.label={self.label}: the data's truth has {names}, choose one of these")
            self._column = names.index(self.label)

    def forward(self, observations: Tensor) -> Tensor:
        """uint8 [B, T, C, H, W] -> logits [B, T, Y]."""
        states = self.encoder(observations)
        logits: Tensor = self.head(self.norm(states.flatten(0, 1)))
        return logits.unflatten(0, states.shape[:2])

    def training_step(self, batch: tuple[Window, ...], batch_idx: int) -> Tensor:
        """Cross-entropy."""
        logits, labels = self._read(batch[0])
        loss = F.cross_entropy(logits, labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Window, ...], batch_idx: int) -> None:
        """Accuracy on pictures never trained on."""
        mask = batch[0].mask
        if mask.any():
            logits, labels = self._read(Window(*(part[mask] for part in batch[0])))
            self.accuracy.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        """Log it."""
        self.log("val/accuracy", self.accuracy.compute(), prog_bar=True, sync_dist=True)
        self.accuracy.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer for what learns."""
        learning = [weight for weight in self.parameters() if weight.requires_grad]
        return rise_and_fall(self.optimizer(learning), self.trainer, self.warm_up)

    def _read(self, window: Window) -> tuple[Tensor, Tensor]:
        labels = window.truth[..., self._column].flatten().long()
        if int(labels.min()) < 0 or int(labels.max()) >= self.classes:
            raise ValueError(
                f"a picture has the class {int(labels.max())} (or {int(labels.min())}), the probe was made for "
                f"{self.classes} classes: set probe.stage.classes"
            )
        with torch.set_grad_enabled(self.training):
            return self(window.observations).flatten(0, 1), labels
