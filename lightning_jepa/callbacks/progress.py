"""Progress for people: a bar in a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar


def progress_bar(seconds_between_lines: float = 10.0) -> ProgressBar:
    """Rich's bar where output is a terminal, else `PlainProgress`."""
    return RichProgressBar() if sys.stdout.isatty() else PlainProgress(seconds_between_lines)


class PlainProgress(ProgressBar):
    """One line now and then: what is being done, how far, how fast, time left, and the metrics of the bar.

    Args:
        seconds_between_lines: least time between two lines.
    """

    def __init__(self, seconds_between_lines: float = 10.0) -> None:
        super().__init__()
        self.seconds_between_lines = seconds_between_lines
        self.enabled = True

    def disable(self) -> None:
        """Lightning silences the bars of all ranks but the first."""
        self.enabled = False

    def enable(self) -> None:
        """The opposite of `disable`."""
        self.enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; a resumed run counts only its own steps."""
        self.started = self.printed = time.monotonic()
        self.first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line if the last one is old enough or this is the last step."""
        now, step, total = time.monotonic(), trainer.global_step, int(trainer.estimated_stepping_batches)
        if not self.enabled or (now - self.printed < self.seconds_between_lines and step != total):
            return
        self.printed = now
        rate = (step - self.first_step) / max(now - self.started, 1e-9)
        minutes, seconds = divmod(round((total - step) / max(rate, 1e-9)), 60)
        metrics = " ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.get_metrics(trainer, pl_module).items()
            if name != "v_num"
        )
        name = type(pl_module).__name__
        print(
            f"{name}: step {step} of {total} ({step / total:.0%}), {rate:.1f} steps/s, "
            f"{minutes}:{seconds:02d} left {metrics}",
            flush=True,
        )
