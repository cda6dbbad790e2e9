"""Vectorised simulators that ship with the template. Importing this package registers their Gymnasium ids."""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

TWO_ROOMS = "lightning_jepa/TwoRooms-v0"


def register_worlds() -> None:
    """Make the worlds known to `gymnasium.make`; the simulators themselves are imported when one is made."""
    if TWO_ROOMS not in registry:
        register(id=TWO_ROOMS, entry_point="data_pipelines.worlds.gym:TwoRoomsEnv")


register_worlds()
