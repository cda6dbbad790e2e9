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
        self.printed = time.monotonic()
        self._begin("step", trainer.global_step)

    def _begin(self, what: str, first: int) -> None:
        self.what, self.first, self.started = what, first, time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line if the last one is old enough or this is the last step.

        A module that makes something beside its first steps says so by `preparation`, which is (what, done, total); the
        line tells how far that is, as the speed of those steps says nothing about the rest.
        """
        step, total = trainer.global_step, int(trainer.estimated_stepping_batches)
        what, done, of = getattr(pl_module, "preparation", None) or ("step", step, total)
        if what != self.what:
            self._begin(what, done)
        now = time.monotonic()
        if not self.enabled or (now - self.printed < self.seconds_between_lines and step != total):
            return
        self.printed = now
        rate = (done - self.first) / max(now - self.started, 1e-9)
        minutes, seconds = divmod(round((of - done) / rate), 60) if rate else (0, 0)
        left = f"{minutes}:{seconds:02d} left" if rate else "just begun"
        metrics = " ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.get_metrics(trainer, pl_module).items()
            if name != "v_num"
        )
        name = type(pl_module).__name__
        print(f"{name}: {what} {done} of {of} ({done / of:.0%}), {rate:.1f} {what}s/s, {left} {metrics}", flush=True)
