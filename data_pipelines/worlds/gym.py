"""Two-Rooms as a Gymnasium environment: one episode at a time, for everything that speaks Gymnasium.

Legend: C H W image.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray

from data_pipelines.worlds.geometry import inside
from data_pipelines.worlds.rooms import RoomsWorld, TwoRoomsLayouts

_GOAL_RADIUS = 4.5  # pixels: within this distance of the goal an episode counts as a success
_WALL, _AGENT, _GOAL = (90, 90, 90), (30, 90, 220), (220, 60, 40)


class TwoRoomsEnv(gymnasium.Env[NDArray[np.uint8], NDArray[np.float32]]):
    """Go from one room to a place in the other one.

    Observations are uint8 [C, H, W] (agent, walls), actions displacements in pixels, the reward is 1 within 4.5 pixels
    of the goal. An episode never terminates: it is truncated after 200 steps, as in the benchmark, where success counts
    at the last step. `info` holds `state` and `goal` [2] in pixels, `goal_observation` [C, H, W], `layout`, `success`.

    `reset` takes the options `layout` (an id), `start` and `goal` (positions [2]); what is not given is drawn from the
    seed: a layout of the split, start and goal in opposite rooms.

    Args:
        render_mode: None, or "rgb_array" for pictures [65, 65, 3] of agent, walls and goal.
        resolution: pixels along each side of an observation, 33 or 65.
        split: layouts to draw from, "train" or "held_out".
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, render_mode: str | None = None, resolution: int = 33, split: str = "train") -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode={render_mode!r}: choose None or 'rgb_array'")
        self.render_mode = render_mode
        self._layouts = TwoRoomsLayouts()
        self._ids = self._layouts.ids(split)
        self._world = RoomsWorld(self._layouts, resolution=resolution)
        self._picture = RoomsWorld(self._layouts, resolution=65)
        bound = self._world.action_bound
        self.action_space = Box(-bound, bound, (self._world.action_size,), np.float32)
        self.observation_space = Box(0, 255, self._world.observation_shape, np.uint8)
        self._generator = torch.Generator()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode.

        Raises:
            ValueError: for an unknown option or layout, or a start or goal inside a wall.
        """
        super().reset(seed=seed)
        options = options or {}
        unknown = set(options) - {"layout", "start", "goal"}
        if unknown:
            raise ValueError(f"unknown reset options {sorted(unknown)}: choose among layout, start, goal")
        generator = self._generator.manual_seed(int(self.np_random.integers(2**62)))
        drawn = int(self._ids[torch.randint(len(self._ids), (), generator=generator)])
        layout = torch.tensor([options.get("layout", drawn)])
        known = len(self._layouts.wall_xs) * len(self._layouts.door_ys)
        if not 0 <= int(layout) < known:
            raise ValueError(f"layout={int(layout)}: choose an id from 0 to {known - 1}")
        room = torch.randint(2, (1,), generator=generator)
        start = self._world.sample_states(layout, room, generator)
        goal = self._world.sample_states(layout, 1 - room, generator)
        start = self._given(options, "start", start)
        self._goal = self._given(options, "goal", goal)
        observation = self._world.reset(layout, start)
        self._picture.reset(layout, start)
        for name, place in (("start", start), ("goal", self._goal)):
            if inside(place[:, None], self._world.solid).any() or (place < 0).any() or (place > 64).any():
                raise ValueError(
                    f"{name}={place[0].tolist()} is inside or beyond a wall; give a free position in pixels"
                )
        self._steps = 0
        return observation[0].numpy(), self._info()

    @staticmethod
    def _given(options: dict[str, Any], name: str, drawn: torch.Tensor) -> torch.Tensor:
        if name not in options:
            return drawn
        place = torch.as_tensor(options[name], dtype=torch.float32)
        if place.shape != (2,):
            raise ValueError(f"{name} has shape {tuple(place.shape)}: give a position (x, y) in pixels")
        return place[None]

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Displace the agent by `action` [2], in pixels."""
        observation = self._world.step(torch.as_tensor(action, dtype=torch.float32)[None])
        self._steps += 1
        info = self._info()
        return observation[0].numpy(), float(info["success"]), False, self._steps >= self._world.episode_steps, info

    def _info(self) -> dict[str, Any]:
        distance = float((self._world.state - self._goal).norm())
        return {
            "state": self._world.state[0].numpy().copy(),
            "goal": self._goal[0].numpy().copy(),
            "goal_observation": self._world.draw(self._goal)[0].numpy(),
            "layout": int(self._world.layout_ids[0]),
            "success": distance <= _GOAL_RADIUS,
        }

    def render(self) -> NDArray[np.uint8] | None:
        """A picture [65, 65, 3], or None without a render mode."""
        if self.render_mode is None:
            return None
        agent, walls = self._picture.draw(self._world.state)[0].numpy() / 255
        goal = self._picture.draw(self._goal)[0, 0].numpy() / 255
        picture = np.full((*walls.shape, 3), 255.0)
        for shape, colour in ((walls, _WALL), (goal, _GOAL), (agent, _AGENT)):
            picture += shape[..., None] * (np.array(colour) - picture)
        return picture.round().astype(np.uint8)
