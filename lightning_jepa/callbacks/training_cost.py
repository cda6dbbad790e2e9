"""What training cost so far: seconds, frames and data, also over interruptions, kept in the checkpoint."""

from __future__ import annotations

import time
from typing import Any

import lightning as L


class TrainingCost(L.Callback):
    """Count wall time from the start of fit (validation included) and the observations that were trained on.

    A resumed run adds to what its checkpoint says. `train_frames` counts the batches of all ranks; `train_transitions`
    are the different ones that the data set holds.
    """

    def __init__(self) -> None:
        self.train_seconds, self.train_frames, self.train_transitions = 0.0, 0, 0
        self.clock: float | None = None
        self.began = False  # a resumed run that finds all done costs nothing, and its exam stays the one that was taken

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock, and look up how large the data set is, if the data module has a manifest."""
        self.clock = time.monotonic()
        data: Any = getattr(trainer, "datamodule", None)
        if hasattr(data, "manifest"):
            self.train_transitions = data.manifest.transitions

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the frames of a batch, a tuple of windows with observations [B, T, C, H, W]."""
        self.began = True
        windows = batch if isinstance(batch, (tuple, list)) and not hasattr(batch, "observations") else (batch,)
        observations = [window.observations for window in windows]
        self.train_frames += trainer.world_size * sum(x.shape[0] * x.shape[1] for x in observations)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self.train_seconds, self.clock = self._seconds(), None

    def state_dict(self) -> dict[str, Any]:
        """`train_seconds`, `train_frames` and `train_transitions`, up to now."""
        return {
            "train_seconds": self._seconds(),
            "train_frames": self.train_frames,
            "train_transitions": self.train_transitions,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from a checkpoint."""
        self.train_seconds, self.train_frames = state_dict["train_seconds"], state_dict["train_frames"]

    def _seconds(self) -> float:
        return self.train_seconds + (time.monotonic() - self.clock if self.began and self.clock is not None else 0.0)
