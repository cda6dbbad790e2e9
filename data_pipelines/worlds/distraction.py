"""Rooms with something fast in sight that nothing depends on.

Legend: B episodes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data_pipelines.worlds.geometry import blob
from data_pipelines.worlds.rooms import SIZE, Layouts, RoomsWorld


class DistractedRooms(RoomsWorld):
    """A `RoomsWorld` whose agent wears a lamp, which is brightest after steps of half the greatest length.

        light = sin(pi |a| / action_bound)^2

    It is seen as a third channel, around the agent. Who knows the last action knows how bright it is; of where the next
    five steps lead it tells nothing, and nothing depends on it: a level of short steps can predict it, one of long
    steps has no use for it. (What other lamps were worth is in docs/hierarchy.md.)

    Args:
        layouts, name, resolution, episode_steps, action_bound, radius, blob_std, device: see `RoomsWorld`.

    Raises:
        ValueError: as `RoomsWorld`.
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
    ) -> None:
        super().__init__(layouts, name, resolution, episode_steps, action_bound, radius, blob_std, device)
        self.observation_shape = (3, resolution, resolution)
        self.truth_names = (*self.truth_names, "light")

    def reset(self, layouts: Tensor, state: Tensor) -> Tensor:
        """Start B episodes in layouts [B] and states [B, 2]; the lamp is dark."""
        self.light = torch.zeros(len(layouts), device=self.device)
        return super().reset(layouts, state)

    def step(self, actions: Tensor) -> Tensor:
        """Displace the agents by actions [B, 2], pixels; the lamp shines."""
        length = actions.to(self.device).norm(dim=-1).clamp_max(self.action_bound)
        self.light = (torch.pi * length / self.action_bound).sin().square()  # [B], 0 to 1
        return super().step(actions)

    def draw(self, states: Tensor) -> Tensor:
        """What would be seen in the given states [B, 2]: uint8 [B, 3, h, w], agent, walls and light."""
        light = blob(states, SIZE, self.stride, self.blob_std) * self.light[:, None, None]
        return torch.cat([super().draw(states), light[:, None].mul(255).round().to(torch.uint8)], 1)

    def truth(self) -> Tensor:
        """[B, N]: the agent's position, the factors of the layout, and the light."""
        return torch.cat([super().truth(), self.light[:, None]], -1)
