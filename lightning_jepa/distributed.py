"""What an entry point must know about the other processes of its job before a trainer exists."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero_only


def is_main() -> bool:
    """Whether this process is the one that writes files and talks to the tracking store (global rank 0)."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def require_one_process(trainer: Any, reason: str) -> None:
    """Refuse a trainer configuration that spreads over several processes.

    Args:
        trainer: the mapping with `devices` and `num_nodes` that will build the trainer.
        reason: who asks, for the message.

    Raises:
        ValueError: if there is more than one device or node, or this process is one of several.
    """
    devices, hosts = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    if str(devices) != "1" or hosts != 1 or not is_main():
        raise ValueError(
            f"{reason} runs in one process, but trainer.devices={devices} and trainer.num_nodes={hosts}. Train the "
            "stage by itself (torchrun -m lightning_jepa.train), then evaluate its checkpoint (lightning_jepa.evaluate)"
        )
