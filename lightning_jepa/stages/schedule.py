"""The learning rate that all stages share."""

from __future__ import annotations

import math

import lightning as L
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def rise_and_fall(optimizer: Optimizer, trainer: L.Trainer, warm_up: float) -> OptimizerLRScheduler:
    """A linear rise over a share of the steps, then a cosine to zero, by the steps that the trainer will make."""
    total = int(trainer.estimated_stepping_batches)
    rise = max(1, round(warm_up * total))

    def rate(step: int) -> float:
        return min((step + 1) / rise, 0.5 * (1 + math.cos(math.pi * min(1, step / total))))

    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, rate), "interval": "step"}}
