"""Planning when the future is uncertain: each candidate is judged in several scenarios (paper section 4.7).

Legend: B episodes, S candidates, M scenarios, H horizon, D state, A action, U uniform numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from lightning_jepa.actor.planners.hierarchical import HierarchicalPlanner
from lightning_jepa.actor.planners.shooting import check_counts
from lightning_jepa.actor.planners.tree import TreeSearch
from lightning_jepa.protocols import Cost, CostBuilder, EnergyModel, Planner
from lightning_jepa.types import Modulation, Plan


class ScenarioPlanner:
    """A planner that searches among sequences, made to minimise a cost over M futures in place of one.

        F(a) = mean of the worst `tail` of the scenarios' costs + kappa * their standard deviation

    What happens in a scenario is drawn before any candidate is looked at and is the same for all of them (common random
    numbers): candidates differ by what they do, not by luck. The planner never chooses z, which would be to plan on
    being lucky; with a `tail` of 1 / M an adversary chooses the worst of M.

    Args:
        planner: searches; it sees no more than a cost.
        scenarios: M.
        tail: share of the worst scenarios that counts, in (0, 1]; 1 is the mean, 1 - tail the level of CVaR.
        kappa: weight of the standard deviation, 0 for none; it needs two scenarios or more.

    Raises:
        ValueError: if a number is out of its range, or the planner needs more than what sequences cost.
    """

    def __init__(self, planner: Planner, scenarios: int, tail: float = 1.0, kappa: float = 0.0) -> None:
        check_counts(scenarios=scenarios)
        if not 0 < tail <= 1 or kappa < 0 or (kappa > 0 and scenarios < 2):
            raise ValueError(
                f"planner.tail={tail}, planner.kappa={kappa}, planner.scenarios={scenarios}: give a share above 0 and "
                "at most 1, no reward for risk, and at least two scenarios where their deviation counts"
            )
        if isinstance(planner, CostBuilder | HierarchicalPlanner | TreeSearch):
            raise ValueError(
                f"{type(planner).__name__} plans by more than what sequences cost: judge scenarios with one of cem, "
                "icem, mppi, gradient and exhaustive"
            )
        self.planner, self.scenarios, self.tail, self.kappa = planner, scenarios, tail, kappa

    @property
    def horizon(self) -> int:
        """Actions in a plan."""
        return self.planner.horizon

    @property
    def action_bound(self) -> float:
        """Largest norm of an action."""
        return self.planner.action_bound

    def plan(
        self,
        s: Tensor,
        world_model: EnergyModel,
        cost: Cost,
        modulation: Modulation,
        start: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Plan:
        """See `protocols.Planner`. Spends M times the model steps; the plan's states are those of one scenario."""
        uniform = torch.rand(self.scenarios, self.horizon, world_model.noise, generator=generator)
        futures = _Futures(world_model, uniform)
        abreast = s.repeat(1, self.scenarios)
        found = self.planner.plan(abreast, futures, _Risk(cost, self), modulation, start, generator)
        states = found.states.unflatten(-1, (self.scenarios, -1))[..., 0, :]
        return Plan(found.actions, states, found.cost, found.evaluations * self.scenarios)

    def judged(self, totals: Tensor) -> Tensor:
        """F of the scenarios' costs [..., M] -> [...]."""
        counted = max(
            1, math.ceil(self.tail * self.scenarios - 1e-9)
        )  # a share of .07 of 100 is 7, whatever its binary form
        worst = totals.topk(counted, -1).values
        judged = worst.mean(-1)
        return judged + self.kappa * totals.std(-1) if self.kappa else judged


class _Futures:
    """A world model whose states hold all scenarios side by side, from [B, M D] to [B, S, H, M D]."""

    def __init__(self, world_model: EnergyModel, uniform: Tensor) -> None:
        self.world_model, self.uniform = world_model, uniform

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        """See `protocols.WorldModel`: of one scenario, as what is seen has happened."""
        return self.world_model.encode(observations, body)

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        """See `protocols.WorldModel`."""
        uniform = self.uniform[:, : actions.shape[2]]
        start = s[:, : s.shape[1] // len(uniform)]  # it is the same in all of them
        return self.world_model.scenarios(start, actions, uniform).transpose(2, 3).flatten(3)


class _Risk:
    """The cost of such states: all of it at the last step."""

    def __init__(self, cost: Cost, judge: ScenarioPlanner) -> None:
        self.cost, self.judge = cost, judge

    def __call__(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, H, M D], [B, S, H, A] -> [B, S, H]."""
        count = self.judge.scenarios
        apart = states.unflatten(-1, (count, -1)).transpose(2, 3).flatten(1, 2)  # [B, S M, H, D]
        costs = self.cost(apart, actions.repeat_interleave(count, 1), modulation)
        totals = costs.sum(-1).unflatten(1, (-1, count))
        return torch.nn.functional.pad(self.judge.judged(totals)[..., None], (states.shape[2] - 1, 0))
