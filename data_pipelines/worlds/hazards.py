"""Two rooms with hazards that hurt, chargers that feed, and a body that feels both.

Legend: B episodes, Q points in each, M hazards, J chargers, P body.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from data_pipelines.plan import hashed
from data_pipelines.worlds.geometry import coverage, travel
from data_pipelines.worlds.rooms import SIZE, Layouts, RoomsWorld, TwoRoomsLayouts


class HazardLayouts(Layouts, Protocol):
    """Layouts with places that hurt and places that feed."""

    def hazards(self, ids: Tensor) -> Tensor:
        """[B] -> [B, M, 4]: boxes."""
        ...

    def chargers(self, ids: Tensor) -> Tensor:
        """[B] -> [B, J, 4]: boxes."""
        ...


class HazardRooms(RoomsWorld):
    """A `RoomsWorld` whose agent has a body: it is hurt in hazards, tires as it moves, and recovers on chargers.

    The body is felt, not seen: `energy_level` in [0, 1], and `pain`, the share of the body that is in a hazard. Hazards
    and chargers are seen, as two more channels. Nothing of this stops the agent; what it makes of it is a matter of its
    cost.

    Args:
        layouts: where walls, hazards and chargers are.
        drain: of the energy level at each step at rest.
        toil: of the energy level at a step of full length, in addition.
        charge: of the energy level at a step with the whole body on a charger.
        least_energy: episodes start with an energy level between this and 1.
        name, resolution, episode_steps, action_bound, radius, blob_std, device: see `RoomsWorld`.

    Raises:
        ValueError: if a number is out of its range.
    """

    layouts: HazardLayouts
    body_names: tuple[str, ...] = ("energy_level", "pain")
    half_body = 1.5  # the body that feels is a square of 3 x 3 pixels

    def __init__(
        self,
        layouts: HazardLayouts,
        name: str = "hazards",
        resolution: int = 33,
        episode_steps: int = 200,
        action_bound: float = 2.45,
        radius: float = 0.5,
        blob_std: float = 1.3,
        drain: float = 0.001,
        toil: float = 0.004,
        charge: float = 0.05,
        least_energy: float = 0.2,
        device: str = "cpu",
    ) -> None:
        super().__init__(layouts, name, resolution, episode_steps, action_bound, radius, blob_std, device)
        if min(drain, toil, charge) < 0 or not 0 <= least_energy <= 1:
            raise ValueError(
                f"drain={drain}, toil={toil}, charge={charge}, least_energy={least_energy}: "
                "give rates of 0 or more and a level between 0 and 1"
            )
        self.drain, self.toil, self.charge, self.least_energy = drain, toil, charge, least_energy
        self.observation_shape = (4, resolution, resolution)

    def reset(self, layouts: Tensor, state: Tensor) -> Tensor:
        """Start B episodes in layouts [B]; `state` [B, 2] is positions, [B, 3] also energy levels, else all are 1."""
        self.hazards = self.layouts.hazards(layouts).to(self.device)
        self.chargers = self.layouts.chargers(layouts).to(self.device)
        self._drawn = torch.stack([coverage(part, SIZE, self.stride) for part in (self.hazards, self.chargers)], 1)
        given = state.to(self.device, torch.float32)
        self.energy_level = given[:, 2] if given.shape[1] > 2 else torch.ones(len(layouts), device=self.device)
        return super().reset(layouts, given[:, :2])

    def starts(self, positions: Tensor, generator: Generator) -> Tensor:
        """Positions [B, 2] with energy levels between `least_energy` and 1: [B, 3]."""
        level = self.least_energy + (1 - self.least_energy) * torch.rand(len(positions), 1, generator=generator)
        return torch.cat([positions, level], -1)

    def step(self, actions: Tensor) -> Tensor:
        """Displace the agents by actions [B, 2], pixels; they tire with each step's length and feed on chargers."""
        moves = self.bounded(actions.to(self.state))
        self.state = travel(self.state[:, None], moves[:, None], self.solid)[:, 0]
        spent = self.drain + self.toil * moves.norm(dim=-1) / self.action_bound
        fed = self.charge * self.share_in(self.state[:, None], self.chargers)[:, 0]
        self.energy_level = (self.energy_level - spent + fed).clamp(0, 1)
        return self.render()

    def body(self) -> Tensor:
        """What is felt, [B, 2]: `energy_level` and `pain`."""
        return torch.stack([self.energy_level, self.share_in(self.state[:, None], self.hazards)[:, 0]], -1)

    def share_in(self, points: Tensor, boxes: Tensor) -> Tensor:
        """The share of a body at points [B, Q, 2] that lies in any of the boxes [B, M, 4]: [B, Q]."""
        low, high = points[:, :, None] - self.half_body, points[:, :, None] + self.half_body
        shared = torch.minimum(high, boxes[:, None, :, 2:]) - torch.maximum(low, boxes[:, None, :, :2])
        return (shared.clamp_min(0) / (2 * self.half_body)).prod(-1).sum(-1).clamp_max(1)

    def draw(self, states: Tensor) -> Tensor:
        """What would be seen in the given states [B, 2]: uint8 [B, 4, h, w], agent, walls, hazards and chargers."""
        return torch.cat([super().draw(states), self._drawn.mul(255).round().to(torch.uint8)], 1)


class HazardTwoRooms(TwoRoomsLayouts):
    """`TwoRoomsLayouts` with three hazards and a charger, placed in `variants` ways for each wall and door.

    A hazard lies in front of the door on either side, so that the way straight to it often leads through; the third
    lies further along the wall in one of the rooms, a charger in the other. Between the first two and the wall there is
    room for the body. Layouts are held out as in Two-Rooms: none of their walls and doors, whatever the hazards.

    Args:
        variants: placements for each wall and door.

    Raises:
        ValueError: if there are none.
    """

    def __init__(self, variants: int = 8) -> None:
        if variants < 1:
            raise ValueError(f"variants={variants}: give at least 1")
        self.variants = variants

    def ids(self, split: str) -> Tensor:
        """Layout ids of "train" or "held_out"."""
        return (TwoRoomsLayouts().ids(split)[:, None] * self.variants + torch.arange(self.variants)).flatten()

    def factors(self, ids: Tensor) -> Tensor:
        """[B] -> [B, 2]: wall_x and door_y in pixels."""
        return super().factors(ids // self.variants)

    def hazards(self, ids: Tensor) -> Tensor:
        """[B] -> [B, 3, 4]: boxes of 6 to 9 pixels, left of the door, right of it, and further off."""
        door, chance = self.factors(ids), self._chance(ids, 0)
        size = 6 + 3 * chance[:, :3]
        half = size / 2
        offset = self.half_wall + 5 + 4 * chance[:, 3:5]  # from the wall's middle to the box: the body has 3 pixels
        beside = torch.stack([door[:, :1] - offset[:, :1] - half[:, :1], door[:, :1] + offset[:, 1:] + half[:, 1:2]], 1)
        across = door[:, 1:, None] + 10 * (chance[:, 5:7, None] - 0.5)
        x, y = self._away(ids, self._room(ids), half[:, 2], 20 + 6 * chance[:, 7], chance[:, 8])
        centre = torch.cat([torch.cat([beside, across], -1), torch.stack([x, y], -1)[:, None]], 1)
        left, right = self.rooms(ids).unbind(1)
        rooms = torch.stack([left, right, torch.where(self._room(ids)[:, None] == 0, left, right)], 1)
        centre = torch.maximum(
            torch.minimum(centre, rooms[..., 2:] - half[..., None]), rooms[..., :2] + half[..., None]
        )
        return torch.cat([centre - half[..., None], centre + half[..., None]], -1)

    def chargers(self, ids: Tensor) -> Tensor:
        """[B] -> [B, 1, 4]: a box of 6 x 6 pixels, in the room without the third hazard."""
        chance = self._chance(ids, 1)
        half = torch.full((len(ids),), 3.0)
        centre = torch.stack(self._away(ids, 1 - self._room(ids), half, 20 + 6 * chance[:, 0], chance[:, 1]), -1)
        return torch.cat([centre - 3, centre + 3], -1)[:, None]

    def _room(self, ids: Tensor) -> Tensor:
        """Which room has the third hazard, [B]."""
        return (self._chance(ids, 2)[:, 0] < 0.5).long()

    def _away(self, ids: Tensor, room: Tensor, half: Tensor, distance: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Centres (x, y) of boxes in a room [B], `distance` along the wall from the door on its longer side."""
        box = self.rooms(ids)[torch.arange(len(ids)), room]
        y = self.factors(ids)[:, 1]
        low, high = box[:, 0] + half, box[:, 2] - half
        far = torch.where(y < SIZE / 2, y + distance, y - distance)
        return low + share * (high - low), torch.maximum(torch.minimum(far, box[:, 3] - half), box[:, 1] + half)

    def _chance(self, ids: Tensor, what: int) -> Tensor:
        """Numbers [B, 16] in [0, 1) that are a function of the layout."""
        drawn = hashed(ids.numpy()[:, None], what, np.arange(16))
        return torch.from_numpy((drawn >> np.uint64(11)).astype(np.float64) / 2**53).float()
