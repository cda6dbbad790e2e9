"""Rooms with something fast in sight that nothing depends on.

Legend: B episodes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor

from data_pipelines.plan import hashed
from data_pipelines.worlds.fate import FATES, next_fate
from data_pipelines.worlds.geometry import blob
from data_pipelines.worlds.layouts import HIGH, LOW
from data_pipelines.worlds.rooms import SIZE, Layouts, RoomsWorld


class DistractedRooms(RoomsWorld):
    """A `RoomsWorld` with a light, somewhere in each layout, that is on or off at each step by chance.

    It is seen as a third channel. Whether it is on can't be known a step before, and says nothing of what is to come: a
    state that holds it holds what is of no use to prediction.

    Args:
        layouts, name, resolution, episode_steps, action_bound, radius, blob_std, device: see `RoomsWorld`.
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

    def starts(self, positions: Tensor, generator: Generator) -> Tensor:
        """Positions [B, 2] with what the light will do: [B, 3]."""
        return torch.cat([positions, torch.randint(FATES, (len(positions), 1), generator=generator)], -1)

    def reset(self, layouts: Tensor, state: Tensor) -> Tensor:
        """Start B episodes in layouts [B]; `state` [B, 2] is positions, [B, 3] also what the light will do, else 0."""
        given = state.to(self.device, torch.float32)
        self.fate = given[:, 2] if given.shape[1] > 2 else torch.zeros(len(layouts), device=self.device)
        drawn = hashed(layouts.cpu().numpy()[:, None], 3, np.arange(2))
        place = torch.from_numpy((drawn >> np.uint64(11)).astype(np.float64) / 2**53).float()
        self._light = blob((LOW + 4 + (HIGH - LOW - 8) * place).to(self.device), SIZE, self.stride, self.blob_std)
        return super().reset(layouts, given[:, :2])

    def step(self, actions: Tensor) -> Tensor:
        """Displace the agents by actions [B, 2], pixels; the light goes on or off."""
        self.fate = next_fate(self.fate)
        return super().step(actions)

    @property
    def light(self) -> Tensor:
        """1 where it is on, 0 where it is off, [B]."""
        return (self.fate >= FATES / 2).float()

    def draw(self, states: Tensor) -> Tensor:
        """What would be seen in the given states [B, 2]: uint8 [B, 3, h, w], agent, walls and light."""
        light = (self._light * self.light[:, None, None]).mul(255).round().to(torch.uint8)
        return torch.cat([super().draw(states), light[:, None]], 1)

    def truth(self) -> Tensor:
        """[B, N]: the agent's position, the factors of the layout, and the light."""
        return torch.cat([super().truth(), self.light[:, None]], -1)
