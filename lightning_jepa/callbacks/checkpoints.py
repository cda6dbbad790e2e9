"""The checkpoint to go on from. The best by a metric is Lightning's own ModelCheckpoint (conf/callbacks/best.yaml)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint


class LastCheckpoint(Checkpoint):
    """Keep `last.ckpt`: every n steps, and once more when training ends.

    Lightning writes beside the file and renames, so a killed run leaves the previous one whole. The last step of an
    epoch is written when the epoch has ended: with its validation, and counted as an epoch by a run that goes on.

    Args:
        folder: where `last.ckpt` goes.
        every_n_steps: optimizer steps between two writes.
    """

    def __init__(self, folder: str, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps}: give at least 1")
        self.path, self.every_n_steps = Path(folder, "last.ckpt"), every_n_steps
        self.written = -1  # the step that the file holds
        self.due = False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write every n steps; with accumulated gradients a step ends many batches but is written once."""
        self.due = trainer.global_step % self.every_n_steps == 0
        if self.due and not trainer.is_last_batch:
            self._write(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last step of the epoch."""
        if self.due:
            self._write(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The steps since the last write are kept too."""
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if trainer.global_step != self.written:
            self.written = trainer.global_step
            trainer.save_checkpoint(self.path)
