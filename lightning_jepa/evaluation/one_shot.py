"""One bad event: what a critic that reads from memory makes of it, near the place and elsewhere (exam E6).

Legend: B events (one layout each), T steps, Q places, D state, K intrinsic terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from lightning_jepa.cost.intrinsic import IntrinsicCost
from lightning_jepa.cost.kernel_critic import KernelCritic
from lightning_jepa.evaluation.states import encode_at
from lightning_jepa.evaluation.world import HazardWorld, draw_layouts, draw_positions
from lightning_jepa.memory.episodic import EpisodicMemory
from lightning_jepa.protocols import WorldModel
from lightning_jepa.types import Modulation

NEAR, FAR = 2.5, 12.0  # px from the event: a step, and five


@dataclass(frozen=True)
class Rise:
    """What an event changed, for each of B events, in units of what the critic expected where the agent had been."""

    near: Tensor  # TC after, within a step of the event, [B]
    elsewhere: Tensor  # |TC after - TC before|, further than five steps away where the agent had been, [B]


class OneShot:
    """An agent that was lucky for `steps` steps meets a hazard for the first time.

    Its memory holds the lucky walk; then one step into a hazard is written. The critic is asked before and after, at
    places around the event and where the agent had been. Weights are u = (background for the goal, 1 for pain), so that
    before the event every place it knows costs about the background.

    Args:
        world: hazards, with the body that feels them.
        world_model: perceives.
        intrinsic: what the memory records of each moment; with the terms `goal` and `pain`.
        metric: space in which states are alike.
        bandwidth: of the kernel, in the metric's unit.
        background: weight of the goal's energy.
        steps: of the lucky walk.
    """

    def __init__(
        self,
        world: HazardWorld,
        world_model: WorldModel,
        intrinsic: IntrinsicCost,
        metric: nn.Module,
        bandwidth: float,
        background: float = 0.1,
        steps: int = 150,
    ) -> None:
        self.world, self.world_model, self.intrinsic, self.metric = world, world_model, intrinsic, metric
        self.bandwidth, self.background, self.steps = bandwidth, background, steps

    @torch.no_grad()
    def __call__(self, events: int, generator: Generator, harmless: bool = False) -> Rise:
        """Measure B events on held-out layouts; a harmless one, as a control, leads to a place beside the hazard."""
        world = self.world
        ids = draw_layouts(world, "held_out", events, generator)
        walk = self._walk(ids, generator)
        begin, end = self._step_in(ids)
        if harmless:
            end = begin
        goals = encode_at(world, self.world_model, ids, draw_positions(world, ids, generator))
        u = torch.tensor([self.background if name == "goal" else 1.0 for name in self.intrinsic.names])
        modulation = Modulation(goals, u.to(goals).expand(events, -1))
        around = begin[:, None] + NEAR * self._circle(12).to(begin) * torch.rand(events, 12, 1, generator=generator)
        lived = torch.randint(self.steps, (events, 64), generator=generator)
        anywhere = walk.gather(1, lived[..., None].expand(-1, -1, 2))
        places = torch.cat([around, anywhere], 1)
        asked = self._states(ids, places)
        memory = EpisodicMemory(events, self.steps + 2, asked.shape[-1], 2, len(self.intrinsic.names)).to(asked.device)
        critic = KernelCritic(memory, self.metric, delta=1, bandwidth=self.bandwidth)
        self._remember(memory, ids, walk, modulation)
        before = critic(asked, modulation)
        self._remember(memory, ids, torch.stack([begin, end], 1), modulation)
        after = critic(asked, modulation)
        away = (places - begin[:, None]).norm(dim=-1)
        visited = torch.arange(places.shape[1], device=away.device) >= around.shape[1]
        usual = _mean(before, visited.expand_as(before))
        return Rise(_mean(after, away <= NEAR) / usual, _mean((after - before).abs(), visited & (away >= FAR)) / usual)

    def _states(self, ids: Tensor, places: Tensor) -> Tensor:
        """What is perceived and felt at places [B, Q, 2]: [B, Q, D]."""
        found = encode_at(self.world, self.world_model, ids.repeat_interleave(places.shape[1]), places.flatten(0, 1))
        return found.unflatten(0, places.shape[:2])

    def _remember(self, memory: EpisodicMemory, ids: Tensor, path: Tensor, modulation: Modulation) -> None:
        states = self._states(ids, path)
        actions = torch.nn.functional.pad(path[:, 1:] - path[:, :-1], (0, 0, 0, 1))
        energies = self.intrinsic(states[:, None], actions[:, None], modulation)[:, 0]
        memory.begin()
        memory.write(states, energies, states.new_zeros(states.shape[:2]), actions)

    def _walk(self, ids: Tensor, generator: Generator) -> Tensor:
        """Random walks [B, T, 2] that never touch a hazard: of eight steps tried, the first that doesn't hurt."""
        world = self.world
        start = self._safe(ids, generator)
        world.reset(ids, start)
        heading = 2 * math.pi * torch.rand(len(ids), 1, generator=generator)
        here, path = start, [start]
        for _ in range(self.steps - 1):
            turn = torch.tensor([0.3] + 7 * [1.5]) * torch.randn(len(ids), 8, generator=generator)
            angle = heading + turn
            moves = world.action_bound * torch.stack([angle.cos(), angle.sin()], -1)
            reached = world.advance(here[:, None].expand(-1, 8, -1).contiguous(), moves.to(here))
            hurt = world.share_in(reached, world.hazards) > 0
            stuck = (reached - here[:, None]).norm(dim=-1) < 0.5 * world.action_bound
            chosen = (2 * hurt + 1 * stuck).float().argmin(1)
            rows = torch.arange(len(ids))
            here = torch.where(hurt[rows, chosen][:, None], here, reached[rows, chosen])
            heading = angle[rows, chosen.cpu()][:, None]
            path.append(here)
        return torch.stack(path, 1)

    def _safe(self, ids: Tensor, generator: Generator) -> Tensor:
        """Places that don't hurt, [B, 2]."""
        place = draw_positions(self.world, ids, generator)
        for _ in range(20):
            self.world.reset(ids, place)
            hurt = self.world.share_in(place[:, None], self.world.hazards)[:, 0] > 0
            place = torch.where(hurt[:, None], draw_positions(self.world, ids, generator), place)
        return place

    def _step_in(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """From beside the first hazard into it, towards its middle along the wall: [B, 2] each."""
        self.world.reset(ids, torch.zeros(len(ids), 2))
        box = self.world.hazards[:, 0]
        centre, half = (box[:, :2] + box[:, 2:]) / 2, (box[:, 3] - box[:, 1]) / 2
        side = torch.where(centre[:, 1] < 32, 1.0, -1.0)  # from where there is more room
        begin = centre + torch.stack([torch.zeros_like(side), side * (half + 1.6)], -1)
        return begin, begin - torch.stack([torch.zeros_like(side), side * self.world.action_bound], -1)

    @staticmethod
    def _circle(count: int) -> Tensor:
        angles = 2 * math.pi * torch.arange(count) / count
        return torch.stack([angles.cos(), angles.sin()], -1)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen in each row."""
    return (values * chosen).sum(-1) / chosen.sum(-1).clamp_min(1)
