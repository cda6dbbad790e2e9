"""Warnings that libraries give about themselves and that nobody here can mend are kept off the console.

Log lines are sorted in conf/hydra/default.yaml.
"""

from __future__ import annotations

import warnings
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

KNOWN = (
    r".isinstance\(treespec, LeafSpec\). is deprecated",  # Lightning 2.6 with torch 2.13
    r"Checkpoint directory .* exists and is not empty",  # resuming in the same folder is meant
)


class Quiet(Callback):
    """Hydra's hook before the entry point runs."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Ignore the known messages, and no others."""
        for message in KNOWN:
            warnings.filterwarnings("ignore", message)
