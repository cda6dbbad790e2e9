"""Collection policies: how an agent without any goal moves about while data are collected.

Legend: B episodes, A action (2: displacement in pixels).
"""

from __future__ import annotations

from math import pi

import numpy as np
import torch
from torch import Generator, Tensor

from data_pipelines.worlds.geometry import inflate
from data_pipelines.worlds.rooms import RoomsWorld


class VonMisesWalk:
    """A random walk whose heading drifts by von Mises noise, h[t+1] = h[t] + e, e ~ VonMises(0, kappa).

    Each episode draws its own kappa, log-uniform between `erratic` and `persistent`: erratic walks stay about where
    they are, persistent ones cross rooms and push at walls. A share of the episodes starts at the door, heading through
    it, since free walks hardly ever find it; all others start anywhere. The walk sees neither states nor observations;
    it feels at most that it was stopped.

    Args:
        door_share: share of the episodes that start at the door, in 0..1.
        shortest: least length of a step, pixels.
        longest: largest length of a step, pixels; each step's length is uniform between the least one and this.
        erratic: least concentration kappa of the heading noise.
        persistent: largest concentration.
        hurry: largest least length; each episode draws its own, between `shortest` and this. None: all have `shortest`,
            and any ten steps are about as long as any others, of which a level above learns nothing.
        restless: chance that a walk which was just stopped by a wall heads for any other direction. Where walls are
            close, those that don't are stopped most of the time.
        door_distance: how far from the middle of the door the episodes of `door_share` start at most, pixels.

    Raises:
        ValueError: if a share or a range is impossible.
    """

    name = "von_mises_walk"
    goal = planned = weights = None  # see `CollectionPolicy`

    def __init__(
        self,
        door_share: float = 0.35,
        shortest: float = 0.2,
        longest: float = 2.45,
        erratic: float = 1.0,
        persistent: float = 20.0,
        door_distance: float = 8.0,
        hurry: float | None = None,
        restless: float = 0.0,
    ) -> None:
        if not 0 <= door_share <= 1:
            raise ValueError(f"door_share={door_share}: give a share between 0 and 1")
        if not 0 <= restless <= 1:
            raise ValueError(f"restless={restless}: give a chance between 0 and 1")
        if not 0 <= shortest <= longest:
            raise ValueError(f"shortest={shortest}, longest={longest}: give 0 <= shortest <= longest")
        if hurry is not None and not shortest <= hurry <= longest:
            raise ValueError(f"hurry={hurry}: give a length between shortest={shortest} and longest={longest}")
        if not 0 < erratic <= persistent:
            raise ValueError(f"erratic={erratic}, persistent={persistent}: give 0 < erratic <= persistent")
        self.door_share, self.door_distance = door_share, door_distance
        self.shortest, self.longest, self.hurry = shortest, longest, hurry
        self.restless = restless
        self.erratic, self.persistent = erratic, persistent

    def reset(self, world: RoomsWorld, layouts: Tensor, generator: Generator) -> Tensor:
        """Begin an episode in each of the layouts [B]: draws headings and concentrations, returns starts [B, ...]."""
        b = len(layouts)
        # NumPy can draw von Mises noise from a stream of its own; PyTorch only from the global one.
        self._noise = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        spread = self._noise.random(b)
        self._kappa = self.erratic * (self.persistent / self.erratic) ** spread
        self._least = np.full(b, self.shortest)
        if self.hurry is not None:
            self._least = self._noise.uniform(self.shortest, self.hurry, b)
        rooms = torch.randint(world.layouts.rooms(layouts[:1]).shape[1], (b,), generator=generator)
        starts = world.sample_states(layouts, rooms, generator)
        heading = (torch.rand(b, generator=generator) * 2 - 1) * pi
        if self.door_share > 0:
            at_door, towards = self._at_door(world, layouts, rooms, generator)
            chosen = torch.rand(b, generator=generator) < self.door_share
            starts = torch.where(chosen[:, None], at_door, starts)
            heading = torch.where(chosen, towards, heading)
        self._heading = heading.double().numpy()
        self._world, self._from, self._length = world, starts.numpy(force=True), np.zeros(b)
        return world.starts(starts, generator)

    def _at_door(
        self, world: RoomsWorld, layouts: Tensor, rooms: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Starts [B, 2] near the door in the given rooms (0 left, 1 right), and headings [B] that lead through it."""
        if world.layouts.factor_names != ("wall_x", "door_y"):
            raise ValueError(
                f"door_share={self.door_share} needs layouts with one door (factors wall_x, door_y), "
                f"but these have {world.layouts.factor_names}; set door_share=0"
            )
        door = world.layouts.factors(layouts)
        distance = self.door_distance * (0.4 + 0.6 * torch.rand(len(layouts), generator=generator))
        angle = (torch.rand(len(layouts), generator=generator) - 0.5) * (pi / 2)
        side = 2.0 * rooms - 1
        offset = distance[:, None] * torch.stack([side * angle.cos(), angle.sin()], -1)
        box = inflate(world.layouts.rooms(layouts), -world.radius)[torch.arange(len(layouts)), rooms]
        starts = (door + offset).clamp(box[:, :2], box[:, 2:])
        aim = door - starts
        wobble = 0.2 * torch.randn(len(layouts), generator=generator)
        return starts, torch.atan2(aim[:, 1], aim[:, 0]) + wobble

    def act(self, observations: Tensor, body: Tensor) -> Tensor:
        """The next displacements [B, 2]; observations [B, C, H, W] and body [B, P] are not looked at."""
        if self.restless > 0:
            self._turn()
        length = self._noise.uniform(self._least, self.longest)
        self._length = length
        action = length * np.stack([np.cos(self._heading), np.sin(self._heading)])
        self._heading += self._noise.vonmises(0.0, self._kappa)
        return torch.from_numpy(action.T.astype(np.float32))

    def _turn(self) -> None:
        """Walks that came less than half as far as they meant to may have another heading."""
        here = self._world.state.numpy(force=True)
        stopped = np.linalg.norm(here - self._from, axis=-1) < self._length / 2
        turning = stopped & (self._noise.random(len(stopped)) < self.restless)
        self._heading = np.where(turning, self._noise.uniform(-pi, pi, len(stopped)), self._heading)
        self._from = here.copy()
