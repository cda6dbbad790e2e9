"""What the data cost a training: the share of time spent waiting for batches, and windows skipped as damaged."""

from __future__ import annotations

import time
from typing import Any

import lightning as L


class DataWatch(L.Callback):
    """Log `data/wait_share` and `data/skipped` for each epoch.

    The share is that of a step's time (waiting and training, without validation), averaged over ranks; skipped windows
    are those of all ranks. A data module without a `stream` that counts both is left alone.
    """

    def __init__(self) -> None:
        self.trained, self.began = 0.0, 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count."""
        self.trained = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A batch has come."""
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is over."""
        self.trained += time.perf_counter() - self.began

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log both."""
        data: Any = getattr(trainer, "datamodule", None)
        stream = getattr(data, "stream", None)
        if stream is not None:
            waited = float(stream.waited)
            pl_module.log("data/wait_share", waited / max(waited + self.trained, 1e-9), sync_dist=True)
            pl_module.log("data/skipped", float(stream.skipped), sync_dist=True, reduce_fx="sum")
