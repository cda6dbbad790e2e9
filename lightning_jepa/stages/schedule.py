"""The learning rate that all stages share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import lightning as L
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def rise_and_fall(
    optimizer: Optimizer, trainer: L.Trainer, warm_up: float, done: Sequence[float] = (1.0,)
) -> OptimizerLRScheduler:
    """A linear rise over a share of the steps, then a cosine to zero, by the steps that the trainer will make.

    Args:
        optimizer: its groups have learning rates of their own.
        trainer: says how many steps there are.
        warm_up: share of them.
        done: share of them after which each group rests; the last one is that of the groups that follow too.
    """
    total = int(trainer.estimated_stepping_batches)
    rise = max(1, round(warm_up * total))

    def until(share: float) -> Callable[[int], float]:
        return lambda step: min((step + 1) / rise, 0.5 * (1 + math.cos(math.pi * min(1, step / (share * total)))))

    groups = len(optimizer.param_groups)
    rates = [until(share) for share in (*done, *[done[-1]] * groups)[:groups]]
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, rates), "interval": "step"}}
