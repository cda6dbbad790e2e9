"""Mode-1: a = A(s, goal, u), fitted to what Mode-2 found, and how agents use it."""

from __future__ import annotations

import pytest
import torch
from plane import GOALS, MAKE, STARTS, Plane
from torch import Tensor, nn

from lightning_jepa.actor.policy import MixturePolicy
from lightning_jepa.agent import Agent
from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.types import Modulation


def policy(components: int = 1, terms: int = 1, action_bound: float = 1.0) -> MixturePolicy:
    torch.manual_seed(0)
    return MixturePolicy(nn.Linear(2, 4), 4, 2, action_bound, terms, components=components, hidden=32)


def fitted(components: int, s: Tensor, planned: Tensor, steps: int = 300) -> MixturePolicy:
    found = policy(components)
    optimizer = torch.optim.Adam(found.parameters(), 1e-2)
    for _ in range(steps):
        loss = found.misfit(s, Modulation(torch.zeros_like(s)), planned).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found


def test_actions_stay_within_the_bound() -> None:
    found = policy(components=3, action_bound=0.5)
    actions = found.act(100 * torch.randn(50, 2), Modulation(100 * torch.randn(50, 2)))
    assert actions.shape == (50, 2)
    assert (actions.norm(dim=-1) <= 0.5 + 1e-6).all()


def test_it_learns_the_planned_actions() -> None:
    s = torch.randn(64, 2)
    planned = 0.8 * s / s.norm(dim=-1, keepdim=True)
    found = fitted(1, s, planned)
    assert (found.act(s, Modulation(torch.zeros_like(s))) - planned).norm(dim=-1).mean() < 0.2


def test_where_plans_pass_on_either_side_a_mixture_takes_one_and_a_mean_goes_between() -> None:
    s = 0.01 * torch.randn(128, 2)
    side = torch.where(torch.arange(128) % 2 == 0, 1.0, -1.0)
    planned = torch.stack([torch.zeros(128), 0.8 * side], -1)
    between, one = (fitted(c, s, planned).act(s, Modulation(torch.zeros_like(s)))[:, 1].abs() for c in (1, 4))
    assert between.mean() < 0.3
    assert (one > 0.6).all()


def test_it_proposes_by_rolling_itself_through_the_world_model() -> None:
    found, modulation = policy(), Modulation(GOALS)
    proposed = found.propose(STARTS, Plane(), modulation, 3)
    s = STARTS
    for action in proposed.unbind(1):
        torch.testing.assert_close(action, found.act(s, modulation))
        s = s + action


def test_what_it_remembers_of_a_goal_is_of_this_goal_and_of_these_weights() -> None:
    """In evaluation, features of a goal are made once; another goal, or weights that were trained, make them anew."""
    found, s = MixturePolicy(nn.Linear(2, 3), 3, 2, 1.0, terms=2, hidden=16).eval(), torch.randn(4, 2)
    goals = [Modulation(torch.randn(4, 2)) for _ in range(2)]

    def afresh(modulation: Modulation) -> Tensor:
        with torch.enable_grad():  # as in training: nothing is remembered
            return found.act(s, modulation).detach()

    with torch.no_grad():
        for modulation in (goals[0], goals[0], goals[1], goals[0]):
            torch.testing.assert_close(found.act(s, modulation), afresh(modulation))
        before = afresh(goals[0])
        found.train()
        for weight in found.features.parameters():
            weight.add_(1)
        found.eval()
        assert not torch.allclose(afresh(goals[0]), before)
        torch.testing.assert_close(found.act(s, goals[0]), afresh(goals[0]))


def test_only_ratios_of_the_weights_matter() -> None:
    found, u = policy(terms=3), torch.rand(4, 3)
    once, twice = (found.act(STARTS, Modulation(GOALS, by * u)) for by in (1, 2))
    torch.testing.assert_close(once, twice)
    with pytest.raises(ValueError, match=r"u have shape \(4, 2\), this policy was made for \[4, 3\]"):
        found.act(STARTS, Modulation(GOALS, u[:, :2]))


def pictures(places: Tensor) -> Tensor:
    return places[:, None, None]  # the plane's pictures are its places


def test_an_agent_reacts_without_any_model_step() -> None:
    model, found = Plane(), policy()
    agent = Agent(model, GoalEnergy(), MAKE["cem"](), 2, policy=found, mode="reactive")
    agent.reset(pictures(GOALS))
    torch.testing.assert_close(agent.act(pictures(STARTS)), found.act(STARTS, Modulation(GOALS)))
    assert model.steps == agent.evaluations == 0
    assert agent.last_plan is None


def test_a_plan_is_at_least_as_good_as_what_the_policy_proposes() -> None:
    found = policy()
    agent = Agent(Plane(), GoalEnergy(), MAKE["cem"](samples=2, elites=1, iterations=1), 2, policy=found)
    agent.reset(pictures(GOALS))
    agent.act(pictures(STARTS))
    assert agent.last_plan is not None
    proposed = found.propose(STARTS, Plane(), Modulation(GOALS), 12)
    states = Plane().rollout(STARTS, proposed[:, None])
    energy = GoalEnergy()(states, proposed[:, None], Modulation(GOALS)).sum(-1)[:, 0]
    assert (agent.last_plan.cost <= energy + 1e-4).all()
    assert agent.evaluations == 2 * 12 + 12  # candidates, and the proposal's own


def test_agents_refuse_what_does_not_fit() -> None:
    parts = (Plane(), GoalEnergy(), MAKE["cem"](), 2)
    with pytest.raises(ValueError, match="mode='reactive' needs a policy"):
        Agent(*parts, mode="reactive")
    with pytest.raises(ValueError, match="agent.mode='asleep': choose one of"):
        Agent(*parts, mode="asleep")
    with pytest.raises(ValueError, match=r"trained for actions up to 0.5, planner.action_bound is 1.0"):
        Agent(*parts, policy=policy(action_bound=0.5))
    with pytest.raises(ValueError, match=r"agent.u=\[1, -1\]: give a weight of 0 or more"):
        Agent(*parts, u=[1, -1])
    with pytest.raises(ValueError, match="give counts of at least 1 and a bound above 0"):
        policy(components=0)
