"""Keep the checkpoints with the tracked run, so that a stage can be taken from the tracking store alone."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from lightning_jepa.tracking import log_files


class UploadCheckpoints(L.Callback):
    """Copy the run's checkpoints (the configuration is inside) to its artifacts when training is over.

    Args:
        folder: where the checkpoints lie.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Called after the last checkpoint was written."""
        if trainer.is_global_zero and Path(self.folder).is_dir():
            log_files(trainer.logger, self.folder, "checkpoints")
