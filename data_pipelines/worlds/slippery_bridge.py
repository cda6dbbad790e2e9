"""Crossings by a short bridge, which is slippery, or by a long safe way: what is best depends on how likely a slip is.

Legend: B episodes, C crossings.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from data_pipelines.worlds.fate import FATES, next_fate
from data_pipelines.worlds.geometry import blob, coverage
from data_pipelines.worlds.layouts import of_split
from data_pipelines.worlds.rooms import SIZE


class SlipperyBridgeWorld:
    """Each step crosses a river: an action above 0 takes the bridge, any other one the safe way.

    An agent wants to be on the middle line; what a crossing costs is its squared distance from there, in units of three
    pixels: 20 on the safe way, 5 over the bridge, 60 after a slip. A slip leads to the other side of the line, so that
    the mean of both futures is nearer to it than the safe way, where the agent never gets by the bridge. How likely a
    slip is on each bridge is to be seen: the darker, the likelier. Whether it happens is decided by a number that is
    not seen, as in `ForkWorld`.

    Args:
        layouts: how slippery the bridges are.
        name: what shards and results call this world.
        resolution: pixels along each side of an observation, 65 or 33.
        action_bound: largest norm of an action, of which the sign alone counts.
        device: where states live and pictures are drawn.

    Raises:
        ValueError: if the resolution is not one at which the world can be drawn.
    """

    action_size, episode_steps = 1, 3
    body_names: tuple[str, ...] = ()
    truth_names = ("agent_x", "agent_y", "slip_1", "slip_2", "slip_3")
    unit, middle, first, between = 3.0, 34.0, 8.0, 16.0  # pixels
    safe, crossed, slipped = 20.0, 5.0, 60.0  # costs

    def __init__(
        self,
        layouts: SlipperyLayouts,
        name: str = "slippery_bridge",
        resolution: int = 33,
        action_bound: float = 1.0,
        device: str = "cpu",
    ) -> None:
        if resolution not in (33, 65):
            raise ValueError(f"resolution={resolution}: this world is drawn at 33 or 65 pixels; set one of them")
        self.layouts, self.name, self.resolution, self.action_bound = layouts, name, resolution, action_bound
        self.device = torch.device(device)
        self.stride = (SIZE - 1) // (resolution - 1)
        self.observation_shape = (2, resolution, resolution)

    def starts(self, count: int, generator: Generator) -> Tensor:
        """States [B, 3] on the middle line before the first river, with what will happen."""
        start = torch.tensor([self.first, self.middle]).expand(count, 2)
        return torch.cat([start, torch.randint(FATES, (count, 1), generator=generator)], -1)

    def reset(self, layouts: Tensor, state: Tensor) -> Tensor:
        """Start B episodes in layouts [B]; `state` [B, 2] is positions, [B, 3] also fates, else all are 0."""
        given = state.to(self.device, torch.float32)
        self.slips = self.layouts.factors(layouts).to(self.device)
        self.fate = given[:, 2] if given.shape[1] > 2 else torch.zeros(len(layouts), device=self.device)
        self.state = given[:, :2]
        x0 = self.first + self.between * torch.arange(3.0, device=self.device)
        rivers = torch.stack([x0 + 6, torch.full_like(x0, 4.5), x0 + 10, torch.full_like(x0, 59.5)], -1)
        drawn = coverage(rivers[:, None], SIZE, self.stride)  # [C, h, w]
        self._rivers = (drawn * (0.1 + 0.9 * self.slips[:, :, None, None])).sum(1)
        return self.render()

    def step(self, actions: Tensor) -> Tensor:
        """Cross the next river by actions [B, 1]."""
        self.fate = next_fate(self.fate)
        crossing = self.crossing.clamp(max=2)
        slip = self.fate / FATES < self.slips[torch.arange(len(crossing), device=self.device), crossing]
        by_bridge = actions.to(self.state)[:, 0] > 0
        ahead = self.ways()
        y = torch.where(by_bridge, torch.where(slip, ahead[1], ahead[0]), ahead[2])
        x = (self.state[:, 0] + self.between).clamp(max=self.first + 3 * self.between)
        self.state = torch.stack([x, y], -1)
        return self.render()

    @property
    def crossing(self) -> Tensor:
        """Which river comes next, 0 to 2, and 3 after the last, [B]."""
        return ((self.state[:, 0] - self.first) / self.between).round().long()

    def ways(self) -> Tensor:
        """Where one gets, y in pixels: over the bridge, after a slip, by the safe way."""
        offset = torch.tensor([self.crossed, self.slipped, self.safe]).sqrt() * torch.tensor([1.0, -1.0, 1.0])
        return (self.middle + self.unit * offset).to(self.device)

    def expected(self, slips: Tensor) -> Tensor:
        """Expected cost of the bridge and of the safe way, for chances of a slip [...]: [..., 2]."""
        bridge = self.crossed + (self.slipped - self.crossed) * slips
        return torch.stack([bridge, torch.full_like(bridge, self.safe)], -1)

    def render(self) -> Tensor:
        """uint8 [B, 2, h, w]: the agent as a spot, and the rivers by how slippery their bridges are."""
        agent = blob(self.state, SIZE, self.stride, 1.3)
        return torch.stack([agent, self._rivers], 1).clamp(0, 1).mul(255).round().to(torch.uint8)

    def body(self) -> Tensor:
        """What is felt, [B, 0]: this agent has no body."""
        return self.state.new_zeros(len(self.state), 0)

    def truth(self) -> Tensor:
        """[B, 5]: the agent's position and the chances of a slip."""
        return torch.cat([self.state, self.slips], -1)


class SlipperyLayouts:
    """Three bridges with chances of a slip of 0, .1, ... .9 each; every fifth combination is held out."""

    factor_names: tuple[str, ...] = ("slip_1", "slip_2", "slip_3")

    def ids(self, split: str) -> Tensor:
        """Layout ids of "train" or "held_out"."""
        a, b, c = self._digits(torch.arange(1000))
        return of_split(split, (a + 2 * b + 3 * c) % 5 == 0)

    def factors(self, ids: Tensor) -> Tensor:
        """[B] -> [B, 3]: chances of a slip."""
        return torch.stack(self._digits(ids), -1) / 10

    def _digits(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return ids // 100, ids // 10 % 10, ids % 10


class CoinToss:
    """Takes the bridge or the safe way by chance (an action of 1 or -1)."""

    name = "coin_toss"
    goal = planned = weights = None  # see `CollectionPolicy`

    def reset(self, world: SlipperyBridgeWorld, layouts: Tensor, generator: Generator) -> Tensor:
        """Begin an episode in each of the layouts [B]: returns the states in which they start."""
        self._generator = generator
        return world.starts(len(layouts), generator)

    def act(self, observations: Tensor, body: Tensor) -> Tensor:
        """Actions [B, 1]; nothing is looked at."""
        return 2.0 * torch.randint(2, (len(observations), 1), generator=self._generator) - 1
