"""Rooms with something fast in sight that nothing depends on.

Legend: B episodes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from data_pipelines.worlds.rooms import Layouts, RoomsWorld


class DistractedRooms(RoomsWorld):
    """A `RoomsWorld` whose agent wears a lamp: its light tells the last step's heading, and that too finely to last.

    The light is seen as a third channel, around the agent. The lamp is on where the heading of the last step was in
    every second one of so many sectors. Who knows the action knows whether it is on; who knows about where five steps
    led does not, and nothing depends on it: a level of short steps can predict it, one of long steps has to leave it
    out. (No tests were a light by chance, and one that is switched by long steps: level 1 leaves out both. Nor one that
    is on after a long step: walks have a pace, so it tells where the next steps lead.)

    Args:
        layouts, name, resolution, episode_steps, action_bound, radius, blob_std, device: see `RoomsWorld`.
        sectors: of all headings; the first lies to the right, from there clockwise as the picture is seen.

    Raises:
        ValueError: as `RoomsWorld`, or if the sectors are not an even number.
    """

    def __init__(
        self,
        layouts: Layouts,
        name: str = "distracted",
        resolution: int = 33,
        episode_steps: int = 200,
        action_bound: float = 2.45,
        radius: float = 0.5,
        blob_std: float = 1.3,
        device: str = "cpu",
        sectors: int = 16,
    ) -> None:
        super().__init__(layouts, name, resolution, episode_steps, action_bound, radius, blob_std, device)
        if sectors < 2 or sectors % 2:
            raise ValueError(f"sectors={sectors}: give an even number, as every second one turns the lamp on")
        self.sectors = sectors
        self.observation_shape = (3, resolution, resolution)
        self.truth_names = (*self.truth_names, "light")

    def reset(self, layouts: Tensor, state: Tensor) -> Tensor:
        """Start B episodes in layouts [B] and states [B, 2]; the lamp is off."""
        self.light = torch.zeros(len(layouts), device=self.device)
        return super().reset(layouts, state)

    def step(self, actions: Tensor) -> Tensor:
        """Displace the agents by actions [B, 2], pixels; the lamp goes on or off."""
        x, y = actions.to(self.device).unbind(-1)
        sector = (torch.atan2(y, x) / (2 * math.pi) * self.sectors).floor()
        self.light = sector.remainder(2)  # 1 where it is on, [B]
        return super().step(actions)

    def draw(self, states: Tensor) -> Tensor:
        """What would be seen in the given states [B, 2]: uint8 [B, 3, h, w], agent, walls and light."""
        seen = super().draw(states)
        return torch.cat([seen, seen[:, :1] * self.light[:, None, None, None].to(torch.uint8)], 1)

    def truth(self) -> Tensor:
        """[B, N]: the agent's position, the factors of the layout, and the light."""
        return torch.cat([super().truth(), self.light[:, None]], -1)
