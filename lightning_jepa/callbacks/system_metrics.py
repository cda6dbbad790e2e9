"""CPU, memory, disk, network and GPU over time, in the run's "System metrics" tab."""

from __future__ import annotations

import lightning as L
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from lightning_jepa.tracking import Tracker


class SystemMetrics(L.Callback):
    """Start MLflow's monitor beside training, on global rank 0; MLflow's own switch does not reach Lightning's logger.

    Args:
        seconds_between_samples: time between two samples, each of which is logged.
    """

    def __init__(self, seconds_between_samples: float = 10.0) -> None:
        self.seconds_between_samples = seconds_between_samples
        self.monitor: SystemMetricsMonitor | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start; a resumed run continues its step axis."""
        if isinstance(trainer.logger, Tracker) and trainer.is_global_zero:
            self.monitor = SystemMetricsMonitor(
                trainer.logger.run_id,
                sampling_interval=self.seconds_between_samples,
                resume_logging=True,
                tracking_uri=trainer.logger._tracking_uri,
            )
            self.monitor.start()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop."""
        self._finish()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop, or its thread would keep a failed process alive."""
        self._finish()

    def _finish(self) -> None:
        if self.monitor is not None:
            self.monitor.finish()
            self.monitor = None
