"""The perception-action cycle (paper section 3.1).

Legend: B episodes, C H W image, P body, D state, H horizon, A action, K intrinsic terms, J critics.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from lightning_jepa.protocols import Cost, Planner, Policy, WorldModel
from lightning_jepa.types import Modulation, Plan

MODES = ("deliberate", "reactive")


class Agent:
    """B agents in B episodes: perceive, then act as the policy says (Mode-1) or as a plan does (Mode-2).

    In Mode-2 it plans again when `replan_every` actions were taken. A plan starts from what the policy proposes, or
    without one from the rest of the plan before.

    Args:
        world_model: perceives and imagines.
        cost: what plans minimise.
        planner: how they do it.
        replan_every: actions taken from one plan.
        noise: standard deviation of what is added to each action, as a share of its norm. Whoever is wrong about one
            corner pushes at it in the same way for ever; a little noise gets past it, and none is left at the goal,
            where actions are small.
        precision: "32-true", or "bf16-mixed" to imagine in half precision, as in training: half as long again as fast.
        seed: of all random numbers from a `reset` on: the same observations then lead to the same actions.
        policy: Mode-1; needed in reactive mode, and proposes plans in the other.
        mode: "deliberate" (Mode-2) or "reactive" (Mode-1).
        u: weights of the intrinsic cost's terms, in their order; 1 each if None.
        v: weights of the critics; 1 each if None.

    Attributes:
        last_plan: what was imagined last, None before the first action.
        planned: bool, whether the last action came with a new plan.
        evaluations: world-model steps made for each episode since `reset`.
        decisions: actions chosen since `reset`, over all episodes.
        seconds: time spent in `act` since `reset`, over all episodes.

    Raises:
        ValueError: if `replan_every` is not an integer of at least one, `noise` is below zero, `precision` or `mode` is
            unknown, a weight is negative, or the policy is missing or made for other actions.
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
        policy: Policy | None = None,
        mode: str = "deliberate",
        u: Sequence[float] | None = None,
        v: Sequence[float] | None = None,
    ) -> None:
        if isinstance(replan_every, bool) or not isinstance(replan_every, int) or replan_every < 1:
            raise ValueError(f"agent.replan_every={replan_every!r}: expected an integer of 1 or more")
        if noise < 0:
            raise ValueError(f"agent.noise={noise!r}: expected 0 (none) or more")
        if precision not in ("32-true", "bf16-mixed"):
            raise ValueError(f"agent.precision={precision!r}: choose '32-true' or 'bf16-mixed'")
        if mode not in MODES:
            raise ValueError(f"agent.mode={mode!r}: choose one of {list(MODES)}")
        if mode == "reactive" and policy is None:
            raise ValueError("agent.mode='reactive' needs a policy: evaluate a checkpoint of the distillation stage")
        if policy is not None and policy.action_bound != planner.action_bound:
            raise ValueError(
                f"the policy was trained for actions up to {policy.action_bound}, planner.action_bound is "
                f"{planner.action_bound}: give both the world's"
            )
        for name, weights in (("u", u), ("v", v)):
            if weights is not None and (len(weights) == 0 or min(weights) < 0):
                raise ValueError(f"agent.{name}={list(weights)}: give a weight of 0 or more for each term, or null")
        self.world_model, self.cost, self.planner, self.policy = world_model, cost, planner, policy
        self.precision, self.mode = precision, mode
        self.replan_every, self.noise, self.seed = replan_every, noise, seed
        self.u, self.v = u, v
        self.last_plan: Plan | None
        self.planned: bool
        self.evaluations: int
        self.decisions: int
        self.seconds: float
        self._taken: int
        self._modulation: Modulation | None = None
        self._start_over()

    def reset(self, goal_observations: Tensor, u: Tensor | None = None) -> None:
        """Begin B episodes whose goals look like this, uint8 [B, C, H, W]; u [B, K] are weights of their own."""
        self._start_over()
        goal = self._perceive(goal_observations, None)
        own = self._weights(self.u, goal) if u is None else u.to(goal)
        self._modulation = Modulation(goal, own, self._weights(self.v, goal))

    def act(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        """What is seen, uint8 [B, C, H, W], and felt, [B, P] -> what to do, [B, A].

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
        act = self._react if self.mode == "reactive" else self._deliberate
        action = act(observations, body, self._modulation)
        drawn = torch.randn(action.shape, generator=self._generator).to(action)
        action = action + self.noise * action.norm(dim=-1, keepdim=True) * drawn
        self.decisions += len(action)
        self.seconds += time.perf_counter() - began
        return action

    @property
    def seconds_per_decision(self) -> float:
        """Time for one action of one episode: that of the batch, divided by its size."""
        return self.seconds / max(self.decisions, 1)

    def _react(self, observations: Tensor, body: Tensor | None, modulation: Modulation) -> Tensor:
        """Mode-1: one pass from what is perceived to the action."""
        assert self.policy is not None
        device, half = observations.device.type, self.precision == "bf16-mixed"
        with torch.no_grad():
            with torch.autocast(device, torch.bfloat16, enabled=half):
                s = self._perceive(observations, body)
            return self.policy.act(s.float(), modulation)  # so small that halving its weights would take longer

    def _deliberate(self, observations: Tensor, body: Tensor | None, modulation: Modulation) -> Tensor:
        """Mode-2: the next action of the plan, or the first of a new one."""
        # Between two plans nothing is decided by what is seen, so nothing is encoded.
        self.planned = self._taken == self.replan_every or self.last_plan is None
        if self.planned:
            self.last_plan = self._plan(self._perceive(observations, body), modulation)
            self._taken = 0
        assert self.last_plan is not None
        action = self.last_plan.actions[:, self._taken]
        self._taken += 1
        return action

    def _plan(self, s: Tensor, modulation: Modulation) -> Plan:
        with torch.autocast(s.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            start = self._start(s, modulation)
            plan = self.planner.plan(s, self.world_model, self.cost, modulation, start, self._generator)
        if plan.actions.shape[1] < self.replan_every:
            raise ValueError(
                f"agent.replan_every={self.replan_every}, but plans have {plan.actions.shape[1]} actions: "
                "lower replan_every or raise planner.horizon"
            )
        self.evaluations += plan.evaluations
        return plan

    def _start(self, s: Tensor, modulation: Modulation) -> Tensor | None:
        """Where planning starts: the policy's proposal, else what is left of the plan before, [B, H, A]."""
        if self.policy is not None:
            self.evaluations += self.planner.horizon
            with torch.no_grad():
                return self.policy.propose(s, self.world_model, modulation, self.planner.horizon)
        if self.last_plan is not None and self.last_plan.actions.shape[1] > self._taken:
            return self.last_plan.actions[:, self._taken :]
        return None

    def _perceive(self, observations: Tensor, body: Tensor | None) -> Tensor:
        with torch.no_grad():
            return self.world_model.encode(observations[:, None], None if body is None else body[:, None])[:, 0]

    def _weights(self, given: Sequence[float] | None, like: Tensor) -> Tensor | None:
        return None if given is None else torch.tensor(list(given), device=like.device).float().expand(len(like), -1)

    def _start_over(self) -> None:
        self._generator = Generator().manual_seed(self.seed)
        self.last_plan = None
        self.planned = False
        self._taken = 0
        self.evaluations = self.decisions = 0
        self.seconds = 0.0
