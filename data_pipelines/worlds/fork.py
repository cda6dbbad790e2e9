"""A field in which nobody can know where a step will lead: left, ahead or right of where it aims.

Legend: B episodes, Q states of each, M modes.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from data_pipelines.worlds.fate import FATES, next_fate
from data_pipelines.worlds.geometry import travel
from data_pipelines.worlds.layouts import beside, boxes, enclosed, of_split
from data_pipelines.worlds.rooms import RoomsWorld


class ForkWorld(RoomsWorld):
    """A `RoomsWorld` where each step turns aside by an angle of one of three modes, by probabilities known to nobody.

    What happens is decided by a number that the agent can't see, `fate`: part of the exact state, so that the same
    state and action always lead to the same place, as in every world here. The best single prediction, the mean of
    three futures, is a place where the agent never is.

    Args:
        layouts: where the walls are.
        angle: between two modes, degrees.
        probabilities: of turning left, going ahead, turning right; they sum to 1.
        name, resolution, episode_steps, action_bound, radius, blob_std, device: see `RoomsWorld`.

    Raises:
        ValueError: if these are no probabilities.
    """

    def __init__(
        self,
        layouts: PillarLayouts,
        name: str = "fork",
        resolution: int = 33,
        episode_steps: int = 32,
        action_bound: float = 8.0,
        angle: float = 60.0,
        probabilities: tuple[float, float, float] = (0.45, 0.10, 0.45),
        radius: float = 0.5,
        blob_std: float = 1.3,
        device: str = "cpu",
    ) -> None:
        super().__init__(layouts, name, resolution, episode_steps, action_bound, radius, blob_std, device)
        if len(probabilities) != 3 or min(probabilities) < 0 or not math.isclose(sum(probabilities), 1, abs_tol=1e-6):
            raise ValueError(f"probabilities={list(probabilities)}: give three numbers of at least 0 that sum to 1")
        self.angle, self.probabilities = angle, tuple(probabilities)

    def starts(self, positions: Tensor, generator: Generator) -> Tensor:
        """Positions [B, 2] with what will happen: [B, 3]."""
        return torch.cat([positions, torch.randint(FATES, (len(positions), 1), generator=generator)], -1)

    def reset(self, layouts: Tensor, state: Tensor) -> Tensor:
        """Start B episodes in layouts [B]; `state` [B, 2] is positions, [B, 3] also fates, else all are 0."""
        given = state.to(self.device, torch.float32)
        self.fate = given[:, 2] if given.shape[1] > 2 else torch.zeros(len(layouts), device=self.device)
        return super().reset(layouts, given[:, :2])

    def step(self, actions: Tensor) -> Tensor:
        """Displace the agents by actions [B, 2], pixels, turned as their fates have it."""
        ahead = self.modes(self.state[:, None], actions[:, None].to(self.state))[:, 0]
        self.fate = next_fate(self.fate)
        below = torch.tensor(self.probabilities, device=self.device).cumsum(0)[:-1]
        mode = (self.fate[:, None] / FATES >= below).sum(1)
        self.state = ahead[torch.arange(len(mode), device=self.device), mode]
        return self.render()

    def modes(self, states: Tensor, actions: Tensor) -> Tensor:
        """Where each mode leads, from Q states [B, Q, 2] by actions [B, Q, 2]: [B, Q, M, 2]."""
        angles = math.radians(self.angle) * torch.tensor([-1.0, 0.0, 1.0], device=actions.device)
        x, y = self.bounded(actions)[..., None, :].unbind(-1)
        turned = torch.stack([x * angles.cos() - y * angles.sin(), x * angles.sin() + y * angles.cos()], -1)
        here = states[..., None, :].expand_as(turned)
        return travel(here.flatten(1, 2), turned.flatten(1, 2), self.solid).view(turned.shape)


class PillarLayouts:
    """A walled field with one square pillar of 6 px, its middle at whole pixels in 20..44; every fifth is held out."""

    factor_names: tuple[str, ...] = ("pillar_x", "pillar_y")
    places = range(20, 45)
    half = 3.0

    def ids(self, split: str) -> Tensor:
        """Layout ids of "train" or "held_out"."""
        x, y = self.factors(torch.arange(len(self.places) ** 2)).long().unbind(-1)
        return of_split(split, (2 * x + y) % 5 == 0)

    def factors(self, ids: Tensor) -> Tensor:
        """[B] -> [B, 2]: the middle of the pillar, pixels."""
        count = len(self.places)
        return torch.stack([ids // count, ids % count], -1).float() + self.places.start

    def walls(self, ids: Tensor) -> Tensor:
        """[B] -> [B, 5, 4]: four border walls and the pillar."""
        x, y = self.factors(ids).unbind(-1)
        return enclosed(boxes((x - self.half, y - self.half, x + self.half, y + self.half)))

    def rooms(self, ids: Tensor) -> Tensor:
        """[B] -> [B, 2, 4]: left and right of the pillar."""
        return beside(self.factors(ids)[:, 0], self.half)
