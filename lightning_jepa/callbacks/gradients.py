"""Stop a training before a gradient that is not finite spoils the weights, and say where it came from."""

from __future__ import annotations

import lightning as L
import torch
from torch.optim import Optimizer


class GradientAlarm(L.Callback):
    """A loss may be finite and its slope not: a square root at 0, an overflow on the way back.

    Weights and optimizer are left as they were, and so is the checkpoint to go on from. Gradients of float16 are none
    of its business: Lightning scales their loss, and skips a step that overflows.

    Raises:
        ValueError: before the step.
    """

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Look at all of them at once, and at each if that is not finite; on all processes they are the same."""
        if trainer.precision == "16-mixed":
            return
        found = {name: weight.grad for name, weight in pl_module.named_parameters() if weight.grad is not None}
        if not found or torch.isfinite(torch.nn.utils.get_total_norm(list(found.values()))):
            return
        spoilt = [name for name, gradient in found.items() if not torch.isfinite(gradient).all()]
        raise ValueError(
            f"step {trainer.global_step}: the gradient of {', '.join(spoilt[:3]) or 'all weights together'} "
            f"{'and others ' if len(spoilt) > 3 else ''}is not finite, though the loss is. The last checkpoint stays "
            "as it is: lower the learning rate, set trainer.gradient_clip_val, and go on with resume=auto"
        )
