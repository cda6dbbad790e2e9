"""Stop a training whose representations have collapsed, and say so."""

from __future__ import annotations

import lightning as L


class CollapseAlarm(L.Callback):
    """Watch the monitors of validation: a state that carries nothing makes the prediction energy look perfect.

    Numbers that are not finite, as when training diverges, alarm too.

    Args:
        least_rank: effective rank of the states below which they count as collapsed.
        least_std: standard deviation of the liveliest component below which they count as collapsed.
        patience: validations in a row that must say so.

    Raises:
        ValueError: when training has collapsed.
    """

    def __init__(self, least_rank: float = 1.5, least_std: float = 1e-2, patience: int = 2) -> None:
        self.least_rank, self.least_std, self.patience = least_rank, least_std, patience
        self.bad = 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count bad validations; the check before training does not count."""
        if trainer.sanity_checking:
            return
        rank = float(trainer.callback_metrics["monitor/effective_rank"])
        std = float(trainer.callback_metrics["monitor/largest_std"])
        self.bad = 0 if rank >= self.least_rank and std >= self.least_std else self.bad + 1  # NaN is never enough
        if self.bad >= self.patience:
            raise ValueError(
                f"the states have collapsed: effective rank {rank:.2f} (alarm below {self.least_rank}), largest "
                f"standard deviation {std:.1e} (alarm below {self.least_std}). Raise stage.weights.variance and "
                f"inverse_dynamics against prediction, or lower the learning rate; callbacks.collapse=null turns the "
                f"alarm off"
            )
