"""Mode-2 that learns while it acts: where a plan costs more than was expected, more is expected from now on.

Legend: B episodes, S candidates, H horizon, A action, D state, N remembered moments.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from lightning_jepa.actor.planners.shooting import check_positive
from lightning_jepa.protocols import Cost, Planner, WorldModel
from lightning_jepa.types import Modulation, Plan


class LearningSearch:
    """Real-time search (Korf 1990, LRTA*) with any planner.

        C'(s) = C(s) + (1 - exp(-|s - goal|^2 / 2 arrived^2)) max_i r_i exp(-|s - s_i|^2 / 2 width^2)
        r_i <- haste (C'(plan) - C(s_i)),   where it is more than nothing

    A critic that takes a wall for a passage leads into a dead end, and there every plan is to stay. Wherever a plan
    begins, what it costs is held against what being there was thought to cost, and what was lacking is remembered for
    as long as the task lasts: the dead end fills up, until the way out is the cheaper one. With haste it does so within
    the task's time; at the goal nothing fills up, or whoever is there would be driven out again. States are compared as
    they are: they tell places apart that are near by, and a metric that folds would fill up far places too.

    Args:
        planner: searches.
        width: how far around a state what was lacking holds.
        arrived: the same around the goal, where nothing is thought to be lacking.
        haste: how many times what was lacking is expected in future.

    Raises:
        ValueError: if a number is not above zero.
    """

    def __init__(self, planner: Planner, width: float, arrived: float, haste: float = 1.0) -> None:
        check_positive(width=width, arrived=arrived, haste=haste)
        self.planner, self.width, self.arrived, self.haste = planner, width, arrived, haste
        self._task: Tensor | None = None

    @property
    def horizon(self) -> int:
        """Actions in a plan."""
        return self.planner.horizon

    @property
    def action_bound(self) -> float:
        """Largest norm of an action."""
        return self.planner.action_bound

    @torch.no_grad()
    def plan(
        self,
        s: Tensor,
        world_model: WorldModel,
        cost: Cost,
        modulation: Modulation,
        start: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Plan:
        """See `protocols.Planner`."""
        if self._task is not modulation.goal:
            self._task, self._goal = modulation.goal, modulation.goal[:, None]
            self._places, self._lacking = s[:, None][:, :0], s.new_zeros(len(s), 0)
        found = self.planner.plan(s, world_model, _Raised(cost, self._lacked), modulation, start, generator)
        still = s.new_zeros(len(s), 1, 1, found.actions.shape[-1])
        self._more = found.cost - cost(s[:, None, None], still, modulation)[:, 0, 0]
        return found

    def out_of_reach(self, s: Tensor, subgoal: Tensor, failed: Tensor) -> None:
        """See `Correctable`."""

    def followed(self, s: Tensor, planned: Tensor) -> None:
        """See `Correctable`: what was lacking at s [B, D] is remembered where a plan was made."""
        self._places = torch.cat([self._places, s[:, None]], 1)
        more = self.haste * self._more.clamp_min(0).masked_fill(~planned, 0.0)
        self._lacking = torch.cat([self._lacking, more[:, None]], 1)

    def _lacked(self, states: Tensor) -> Tensor:
        """[B, S, D] -> [B, S]."""
        if not self._lacking.shape[1]:
            return states.new_zeros(states.shape[:2])
        near = torch.exp(-torch.cdist(states, self._places).square() / (2 * self.width**2))
        there = torch.exp(-(states - self._goal).square().sum(-1) / (2 * self.arrived**2))
        return (1 - there) * (near * self._lacking[:, None]).amax(-1)


class _Raised:
    """A cost, and what was lacking where a plan ends."""

    def __init__(self, cost: Cost, lacked: Callable[[Tensor], Tensor]) -> None:
        self.cost, self.lacked = cost, lacked

    def __call__(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        energy = self.cost(states, actions, modulation)
        return torch.cat([energy[..., :-1], energy[..., -1:] + self.lacked(states[:, :, -1])[..., None]], -1)
