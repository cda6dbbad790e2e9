"""The perception-action cycle (paper section 3.1).

Legend: B episodes, C H W image, D state, H horizon, A action.
"""

from __future__ import annotations

import time

import torch
from torch import Generator, Tensor

from lightning_jepa.protocols import Cost, Planner, WorldModel
from lightning_jepa.types import Modulation, Plan


class Agent:
    """B agents in B episodes: perceive, plan (Mode-2), act; plan again when `replan_every` actions were taken.

    The rest of a plan is the next one's warm start.

    Args:
        world_model: perceives and imagines.
        cost: what plans minimise.
        planner: how they do it.
        replan_every: actions taken from one plan.
        noise: standard deviation of what is added to each action, as a share of its norm. A model that is wrong about
            one corner plans the same push at it for ever; a little noise gets past it, and none is left at the goal,
            where actions are small.
        precision: "32-true", or "bf16-mixed" to imagine in half precision, as in training: half as long again as fast.
        seed: of all random numbers from a `reset` on: the same observations then lead to the same actions.

    Attributes:
        last_plan: what was imagined last, None before the first action.
        evaluations: world-model steps made for each episode since `reset`.
        decisions: actions chosen since `reset`, over all episodes.
        seconds: time spent in `act` since `reset`, over all episodes.

    Raises:
        ValueError: if `replan_every` is not an integer of at least one, `noise` is below zero, or `precision` is
            unknown.
    """

    def __init__(
        self,
        world_model: WorldModel,
        cost: Cost,
        planner: Planner,
        replan_every: int,
        noise: float = 0.0,
        precision: str = "32-true",
        seed: int = 0,
    ) -> None:
        if isinstance(replan_every, bool) or not isinstance(replan_every, int) or replan_every < 1:
            raise ValueError(f"agent.replan_every={replan_every!r}: expected an integer of 1 or more")
        if noise < 0:
            raise ValueError(f"agent.noise={noise!r}: expected 0 (none) or more")
        if precision not in ("32-true", "bf16-mixed"):
            raise ValueError(f"agent.precision={precision!r}: choose '32-true' or 'bf16-mixed'")
        self.world_model, self.cost, self.planner = world_model, cost, planner
        self.precision = precision
        self.replan_every, self.noise, self.seed = replan_every, noise, seed
        self.last_plan: Plan | None
        self.evaluations: int
        self.decisions: int
        self.seconds: float
        self._taken: int
        self._modulation: Modulation | None = None
        self._start_over()

    def reset(self, goal_observations: Tensor) -> None:
        """Begin B episodes whose goals look like this, uint8 [B, C, H, W]."""
        self._start_over()
        self._modulation = Modulation(goal=self._perceive(goal_observations))

    def act(self, observations: Tensor) -> Tensor:
        """What is seen, uint8 [B, C, H, W] -> what to do, [B, A].

        Raises:
            ValueError: before `reset`, for another number of episodes than was reset, or if the planner's horizon is
                shorter than `replan_every`.
        """
        if self._modulation is None:
            raise ValueError("the agent has no goal: call reset(goal_observations) before act(observations)")
        if len(observations) != len(self._modulation.goal):
            raise ValueError(
                f"{len(observations)} observations, but {len(self._modulation.goal)} episodes were reset: "
                "act for all of them at once, or reset"
            )
        began = time.perf_counter()
        # Between two plans nothing is decided by what is seen, so nothing is encoded.
        if self._taken == self.replan_every or self.last_plan is None:
            self.last_plan = self._plan(observations, self._modulation)
            self._taken = 0
        action = self.last_plan.actions[:, self._taken]
        drawn = torch.randn(action.shape, generator=self._generator).to(action)
        action = action + self.noise * action.norm(dim=-1, keepdim=True) * drawn
        self._taken += 1
        self.decisions += len(action)
        self.seconds += time.perf_counter() - began
        return action

    @property
    def seconds_per_decision(self) -> float:
        """Time for one action of one episode: that of the batch, divided by its size."""
        return self.seconds / max(self.decisions, 1)

    def _plan(self, observations: Tensor, modulation: Modulation) -> Plan:
        start = None
        if self.last_plan is not None and self.last_plan.actions.shape[1] > self._taken:
            start = self.last_plan.actions[:, self._taken :]
        s = self._perceive(observations)
        with torch.autocast(s.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            plan = self.planner.plan(s, self.world_model, self.cost, modulation, start, self._generator)
        if plan.actions.shape[1] < self.replan_every:
            raise ValueError(
                f"agent.replan_every={self.replan_every}, but plans have {plan.actions.shape[1]} actions: "
                "lower replan_every or raise planner.horizon"
            )
        self.evaluations += plan.evaluations
        return plan

    def _perceive(self, observations: Tensor) -> Tensor:
        with torch.no_grad():
            return self.world_model.encode(observations[:, None])[:, 0]

    def _start_over(self) -> None:
        self._generator = Generator().manual_seed(self.seed)
        self.last_plan = None
        self._taken = 0
        self.evaluations = self.decisions = 0
        self.seconds = 0.0
