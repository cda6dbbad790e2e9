"""What validation saw while training went on, kept in the checkpoint for exams that draw it."""

from __future__ import annotations

from typing import Any

import lightning as L


class Curves(L.Callback):
    """Remember, after each validation, the step and all monitors and probes. A resumed run adds to its checkpoint's."""

    def __init__(self) -> None:
        self.curves: dict[str, list[list[float]]] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The check before training does not count."""
        if trainer.sanity_checking:
            return
        for name, value in trainer.callback_metrics.items():
            if name.startswith(("monitor/", "probe/")):
                self.curves.setdefault(name, []).append([trainer.global_step, float(value)])

    def state_dict(self) -> dict[str, Any]:
        """Name -> [step, value] of each validation."""
        return {"curves": self.curves}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.curves = state_dict["curves"]
