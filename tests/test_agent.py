"""The agent: perceive, plan, act the first actions, plan again with the rest as warm start."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Generator, Tensor

from lightning_jepa.actor.planners.cem import CEM
from lightning_jepa.agent import Agent
from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.protocols import Cost, WorldModel
from lightning_jepa.types import Modulation, Plan


class Counters:
    """A world whose picture [B, 1, 1, 2] holds two numbers to which actions are added; its own world model."""

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        return observations.flatten(2).float()

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        return s[:, None, None] + actions.cumsum(2)


@dataclass
class Spy:
    """A planner that plans 0, 1, 2, ... in its first call, 10, 11, ... in the second, and notes what it is given."""

    horizon: int = 6
    states: list[Tensor] = field(default_factory=list)
    starts: list[Tensor | None] = field(default_factory=list)
    goals: list[Tensor] = field(default_factory=list)
    draws: list[float] = field(default_factory=list)

    def plan(
        self,
        s: Tensor,
        world_model: WorldModel,
        cost: Cost,
        modulation: Modulation,
        start: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Plan:
        actions = (10.0 * len(self.states) + torch.arange(self.horizon))[None, :, None].expand(len(s), -1, 2)
        self.states.append(s)
        self.starts.append(start)
        self.goals.append(modulation.goal)
        self.draws.append(torch.rand((), generator=generator).item())
        return Plan(actions, s[:, None] + actions.cumsum(1), torch.zeros(len(s)), evaluations=7)


def picture(*numbers: float, episodes: int = 3) -> Tensor:
    return torch.tensor(numbers, dtype=torch.uint8).view(1, 1, 1, -1).expand(episodes, -1, -1, -1)


def test_acts_through_its_plan_and_plans_again_with_the_rest_of_it() -> None:
    spy = Spy()
    agent = Agent(Counters(), GoalEnergy(), spy, replan_every=4)
    agent.reset(picture(9, 9))
    taken = [agent.act(picture(t, 0))[0, 0].item() for t in range(10)]
    assert taken == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21]
    assert [s[0, 0].item() for s in spy.states] == [0, 4, 8]
    assert spy.starts[0] is None
    assert [start[0, :, 0].tolist() for start in spy.starts[1:] if start is not None] == [[4, 5], [14, 15]]
    assert all(goal is spy.goals[0] for goal in spy.goals), "one goal tensor an episode: planners may build on it"
    assert spy.goals[0].tolist() == [[9, 9]] * 3


def test_a_plan_used_up_leaves_no_warm_start() -> None:
    spy = Spy(horizon=2)
    agent = Agent(Counters(), GoalEnergy(), spy, replan_every=2)
    agent.reset(picture(9, 9))
    assert [agent.act(picture(0, 0))[0, 0].item() for _ in range(4)] == [0, 1, 10, 11]
    assert spy.starts == [None, None]


def test_counts_what_it_spends_and_shows_what_it_imagined() -> None:
    agent = Agent(Counters(), GoalEnergy(), Spy(), replan_every=4)
    assert agent.last_plan is None
    assert agent.seconds_per_decision == 0
    agent.reset(picture(9, 9))
    for _ in range(5):
        agent.act(picture(0, 0))
    assert agent.evaluations == 2 * 7
    assert agent.decisions == 5 * 3
    assert agent.seconds_per_decision == pytest.approx(agent.seconds / 15)
    assert agent.seconds > 0
    assert agent.last_plan is not None
    assert agent.last_plan.states.shape == (3, 6, 2)


def test_reset_begins_anew() -> None:
    spy = Spy()
    agent = Agent(Counters(), GoalEnergy(), spy, replan_every=4, seed=5)
    for goal in (1, 2):
        agent.reset(picture(goal, goal))
        for _ in range(5):
            agent.act(picture(0, 0))
        assert agent.evaluations == 14
    assert spy.starts[2] is None
    assert spy.goals[2].tolist() == [[2, 2]] * 3
    assert spy.draws[:2] == spy.draws[2:] != [spy.draws[0]] * 2


def test_goes_to_its_goal() -> None:
    planner = CEM(samples=32, iterations=3, elites=4, horizon=8, action_size=2, action_bound=2.0)
    agent = Agent(Counters(), GoalEnergy(), planner, replan_every=2)
    agent.reset(torch.cat([picture(30, 5, episodes=1), picture(3, 20, episodes=1)]))
    state = torch.tensor([[10.0, 10.0], [20.0, 20.0]])
    for _ in range(20):
        state = state + agent.act(state.round().to(torch.uint8).view(2, 1, 1, 2))
    assert ((state - torch.tensor([[30.0, 5.0], [3.0, 20.0]])).norm(dim=-1) < 1.5).all()


@pytest.mark.parametrize("replan_every", [0, -1, 2.5, True])
def test_replan_every_has_to_be_a_count(replan_every: int) -> None:
    with pytest.raises(ValueError, match="agent.replan_every"):
        Agent(Counters(), GoalEnergy(), Spy(), replan_every=replan_every)


def test_acting_without_a_goal_is_refused() -> None:
    with pytest.raises(ValueError, match="call reset"):
        Agent(Counters(), GoalEnergy(), Spy(), replan_every=2).act(picture(0, 0))


def test_acting_for_other_episodes_than_were_reset_is_refused() -> None:
    agent = Agent(Counters(), GoalEnergy(), Spy(), replan_every=2)
    agent.reset(picture(0, 0))
    with pytest.raises(ValueError, match="2 observations, but 3 episodes"):
        agent.act(picture(0, 0, episodes=2))


def test_plans_shorter_than_replan_every_are_refused() -> None:
    agent = Agent(Counters(), GoalEnergy(), Spy(horizon=3), replan_every=4)
    agent.reset(picture(0, 0))
    with pytest.raises(ValueError, match="raise planner.horizon"):
        agent.act(picture(0, 0))


def test_noise_is_a_share_of_the_action_and_none_is_left_where_actions_are_zero() -> None:
    """a = plan + noise |plan| e, e ~ N(0, 1): the first planned action of the spy is 0, the second has norm sqrt(2)."""

    def two_actions() -> list[Tensor]:
        agent = Agent(Counters(), GoalEnergy(), Spy(), replan_every=4, noise=0.5, seed=1)
        agent.reset(picture(9, 9, episodes=4000))
        return [agent.act(picture(0, 0, episodes=4000)) for _ in range(2)]

    still, moving = two_actions()
    assert (still == 0).all()
    assert moving.mean().item() == pytest.approx(1, abs=0.05)
    assert moving.std().item() == pytest.approx(0.5 * 2**0.5, rel=0.05)
    assert torch.equal(two_actions()[1], moving)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="agent.noise"):
        Agent(Counters(), GoalEnergy(), Spy(), replan_every=4, noise=-0.1)
    with pytest.raises(ValueError, match="agent.precision"):
        Agent(Counters(), GoalEnergy(), Spy(), replan_every=4, precision="8-bit")


def test_half_precision_reaches_the_imagination_and_not_what_is_remembered() -> None:
    class Linear(Counters):
        def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
            self.found = torch.nn.functional.linear(s, torch.eye(2)).dtype
            return super().rollout(s, actions)

    for precision, expected in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        model = Linear()
        planner = CEM(samples=4, iterations=1, elites=2, horizon=2, action_size=2, action_bound=1.0)
        agent = Agent(model, GoalEnergy(), planner, replan_every=2, precision=precision)
        agent.reset(picture(9, 9))
        agent.act(picture(0, 0))
        assert model.found == expected
