"""Rooms: a point agent among axis-aligned walls, seen from above. Many episodes are stepped and rendered at once.

Legend: B episodes, K walls each, N truth.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Generator, Tensor

from data_pipelines.worlds.geometry import blob, coverage, inflate, shortest_ways, travel, way_to_goal
from data_pipelines.worlds.layouts import HIGH, LOW, beside, boxes, enclosed, of_split

SIZE = 65  # pixels along each side of the world; all lengths are in these pixels


class Layouts(Protocol):
    """A numbered family of layouts, split into training and held-out ones by construction."""

    factor_names: tuple[str, ...]

    def ids(self, split: str) -> Tensor:
        """All layout ids of a split ("train" or "held_out")."""
        ...

    def walls(self, ids: Tensor) -> Tensor:
        """[B] -> [B, K, 4]."""
        ...

    def factors(self, ids: Tensor) -> Tensor:
        """[B] -> [B, F]: what varies between layouts, named by `factor_names`."""
        ...

    def rooms(self, ids: Tensor) -> Tensor:
        """[B] -> [B, R, 4]: the free boxes in which episodes start and goals lie."""
        ...


class RoomsWorld:
    """A disc agent that moves by displacement and stops at walls.

    Args:
        layouts: where the walls are.
        name: what shards and results call this world.
        resolution: pixels along each side of an observation, 65 or 33 (the same world drawn at half the resolution).
        episode_steps: actions in an episode.
        action_bound: largest norm of a displacement, in pixels of the 65-pixel world; longer actions are shortened.
        radius: radius of the agent's body, in pixels.
        blob_std: standard deviation of the Gaussian spot that shows the agent, in pixels.
        device: where states live and pictures are drawn.

    Raises:
        ValueError: if the resolution is not one at which the world can be drawn.
    """

    action_size = 2
    body_names: tuple[str, ...] = ()

    def __init__(
        self,
        layouts: Layouts,
        name: str = "two_rooms",
        resolution: int = 33,
        episode_steps: int = 200,
        action_bound: float = 2.45,
        radius: float = 0.5,
        blob_std: float = 1.3,
        device: str = "cpu",
    ) -> None:
        if resolution not in (33, 65):
            raise ValueError(f"resolution={resolution}: this world is drawn at 33 or 65 pixels; set one of them")
        self.layouts, self.name, self.resolution = layouts, name, resolution
        self.episode_steps, self.action_bound, self.radius, self.blob_std = (
            episode_steps,
            action_bound,
            radius,
            blob_std,
        )
        self.device = torch.device(device)
        self.stride = (SIZE - 1) // (resolution - 1)
        self.observation_shape = (2, resolution, resolution)
        self.truth_names = ("agent_x", "agent_y", *layouts.factor_names)

    def reset(self, layouts: Tensor, state: Tensor) -> Tensor:
        """Start B episodes in the given layouts [B] and states [B, 2] (the agent's position, pixels)."""
        self.layout_ids = layouts.to(self.device)
        self.walls = self.layouts.walls(layouts).to(self.device)
        self.solid = inflate(self.walls, self.radius)
        self._known: tuple[Tensor, tuple[Tensor, Tensor]] | None = None
        self.state = state.to(self.device, torch.float32)
        self._drawn_walls = coverage(self.walls, SIZE, self.stride)
        return self.render()

    def step(self, actions: Tensor) -> Tensor:
        """Displace the agents by actions [B, 2], pixels, from any device; returns the next observations."""
        self.state = self.advance(self.state[:, None], actions[:, None].to(self.state))[:, 0]
        return self.render()

    def advance(self, states: Tensor, actions: Tensor) -> Tensor:
        """True dynamics without side effects: Q states [B, Q, 2] and actions [B, Q, 2] of each episode -> [B, Q, 2]."""
        return travel(states, self.bounded(actions), self.solid)

    def bounded(self, actions: Tensor) -> Tensor:
        """Actions [..., 2], shortened to the largest allowed norm."""
        norm = actions.norm(dim=-1, keepdim=True)
        return actions * (self.action_bound / norm.clamp_min(1e-9)).clamp_max(1)

    def render(self) -> Tensor:
        """uint8 [B, 2, h, w]: the agent as a spot, and the walls."""
        return self.draw(self.state)

    def draw(self, states: Tensor) -> Tensor:
        """What would be seen in the given states [B, 2]: uint8 [B, 2, h, w]."""
        agent = blob(states, SIZE, self.stride, self.blob_std)
        return torch.stack([agent, self._drawn_walls], 1).mul(255).round().to(torch.uint8)

    def body(self) -> Tensor:
        """What is felt, [B, 0]: this agent has no body."""
        return self.state.new_zeros(len(self.state), 0)

    def truth(self) -> Tensor:
        """[B, N]: the agent's position and the factors of the layout."""
        return torch.cat([self.state, self.layouts.factors(self.layout_ids).to(self.state)], -1)

    def way_length(self, goal: Tensor) -> Tensor:
        """Length of the shortest free way [B] from the current states to goals [B, 2]."""
        return way_to_goal(self.state[:, None], self.solid, self._ways(goal))[0][:, 0]

    def expert(self, goal: Tensor) -> Tensor:
        """The action [B, 2] of an expert who knows the walls: along the shortest way, at full speed."""
        target = way_to_goal(self.state[:, None], self.solid, self._ways(goal))[1][:, 0]
        return self.bounded(target - self.state)

    def _ways(self, goal: Tensor) -> tuple[Tensor, Tensor]:
        """Shortest ways to goals [B, 2], found once for as long as these are the goals."""
        goal = goal.to(self.state)
        if self._known is None or not torch.equal(self._known[0], goal):
            self._known = (goal, shortest_ways(self.solid, goal))
        return self._known[1]

    def sample_states(self, layouts: Tensor, rooms: Tensor, generator: Generator) -> Tensor:
        """Uniform free positions [B, 2], each within the given room [B] of its layout [B]."""
        boxes = inflate(self.layouts.rooms(layouts), -self.radius)
        box = boxes[torch.arange(len(layouts)), rooms]
        return box[:, :2] + (box[:, 2:] - box[:, :2]) * torch.rand(len(layouts), 2, generator=generator)

    def starts(self, positions: Tensor, generator: Generator) -> Tensor:
        """States [B, ...] in which collected episodes start at positions [B, 2]."""
        return positions


class TwoRoomsLayouts:
    """Two rooms and one door: a vertical wall 3 px wide at x in 20..44, an opening of 9 px around y in 10..54.

    Every fifth pair (x, y), on a slanted lattice, is held out: each wall and each door is seen in training, none of the
    held-out pairs.
    """

    factor_names: tuple[str, ...] = ("wall_x", "door_y")
    wall_xs, door_ys = range(20, 45), range(10, 55)
    half_wall, half_door = 1.5, 4.5

    def ids(self, split: str) -> Tensor:
        """Layout ids of "train" or "held_out"."""
        x, y = self.factors(torch.arange(len(self.wall_xs) * len(self.door_ys))).long().unbind(-1)
        return of_split(split, (2 * x + y) % 5 == 0)

    def factors(self, ids: Tensor) -> Tensor:
        """[B] -> [B, 2]: wall_x and door_y in pixels."""
        x = ids // len(self.door_ys) + self.wall_xs.start
        y = ids % len(self.door_ys) + self.door_ys.start
        return torch.stack([x, y], -1).float()

    def walls(self, ids: Tensor) -> Tensor:
        """[B] -> [B, 6, 4]: four border walls and the two halves of the inner one."""
        x, y = self.factors(ids).unbind(-1)
        left, right = x - self.half_wall, x + self.half_wall
        above, below = (left, LOW + 0.5, right, y - self.half_door), (left, y + self.half_door, right, HIGH - 0.5)
        return enclosed(boxes(above, below))

    def rooms(self, ids: Tensor) -> Tensor:
        """[B] -> [B, 2, 4]: the left and the right room."""
        return beside(self.factors(ids)[:, 0], self.half_wall)
