"""A critic that finds ways on the state's map, and lessons from the shortest ways within walks."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pretraining import SHAPE, collect_shards, data, stage, trainer
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from lightning_jepa.cost.critic import Critic
from lightning_jepa.cost.effort import Effort
from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.cost.intrinsic import IntrinsicCost
from lightning_jepa.cost.ways import FAR, MOVES, ShortestWays, WayNetwork, around
from lightning_jepa.memory.episodic import EpisodicMemory
from lightning_jepa.stages.critic_targets import Learner
from lightning_jepa.stages.critic_training import CriticTraining
from lightning_jepa.stages.walked_ways import NO_WAY, WalkedWays
from lightning_jepa.stages.weighing import UniformWeights
from lightning_jepa.world_model.jepa import JEPA

GOAL = {"goal": partial(GoalEnergy, width=1.0)}
MAZE = """
.....
.###.
...#.
.#.#.
.#...
"""
WALLS = torch.tensor([[cell == "#" for cell in row] for row in MAZE.split()])


class Beside(nn.Module):
    """Two steps to each place beside, up, down, left and right, unless a wall is there."""

    def forward(self, maps: Tensor) -> Tensor:
        straight = torch.tensor([y == 0 or x == 0 for y, x in MOVES])[:, None, None]
        return torch.where(straight & (maps[:, :1] == 0), 2.0, 400.0).log()


def network(crossing: float = 1.0, **arguments: int) -> WayNetwork:
    """One that sees where the agent is."""
    made = WayNetwork((2, 5, 5), 0.9, crossing, channels=1, **arguments)
    made.beside = nn.Sequential(Beside())
    for weight in [*made.own.parameters(), *made.other.parameters(), *made.place.parameters()]:
        nn.init.zeros_(weight)
    made.own.weight.data[0, 1, 1, 1] = 100.0
    nn.init.ones_(made.place.weight)
    return made


def at(*places: tuple[int, int]) -> Tensor:
    """States [N, D] of agents in rows and columns of the maze."""
    agents = torch.stack([F.one_hot(torch.tensor(5 * y + x), 25).view(5, 5) for y, x in places])
    return torch.stack([WALLS.expand_as(agents), agents], 1).flatten(1).float()


def test_steps_are_those_of_the_shortest_way_around_walls() -> None:
    """v[p] <- min(v[p], min_q c[p, q] + v[q])."""
    starts, goal = [(0, 0), (0, 4), (2, 2), (4, 2), (4, 4)], (2, 2)
    found = network().steps(at(*starts)[None], at(goal))
    torch.testing.assert_close(found, 2.0 * torch.tensor([[4.0, 8.0, 0.0, 2.0, 4.0]]), atol=0.01, rtol=0)


def test_a_critic_of_longer_steps_counts_fewer() -> None:
    """steps = crossing sum_p P_s(p) v[p]."""
    ways = at((0, 0), (4, 4))[None], at((2, 2))
    torch.testing.assert_close(network(crossing=0.2).steps(*ways), network().steps(*ways) / 5)


def test_a_way_has_as_many_places_as_there_are_sweeps() -> None:
    assert network(sweeps=4).steps(at((0, 0))[None], at((2, 2))).item() == pytest.approx(8, abs=0.01)
    assert network(sweeps=3).steps(at((0, 0))[None], at((2, 2))).item() > 100


def test_it_expects_the_discounted_sum_until_the_goal_is_there() -> None:
    """1 - gamma^steps, in units of 1 / (1 - gamma), for states and goals of any shape; what is felt is left out."""
    states, goals = at((0, 0), (4, 2), (4, 4), (2, 0)).view(2, 2, 50), at((2, 2)).expand(2, 2, 50)
    body = torch.randn(2, 2, 3)
    found = network(body_size=3)(torch.cat([states, body], -1), torch.cat([goals, -body], -1), torch.ones(2, 2, 1))
    assert found.shape == (2, 2, 1)
    torch.testing.assert_close(found[..., 0], 1 - 0.9 ** torch.tensor([[8.0, 4.0], [8.0, 4.0]]), atol=1e-3, rtol=0)


@given(seed=st.integers(0, 2**31 - 1))
def test_gradients_are_those_through_every_sweep(seed: int) -> None:
    """Of v and its gradients: those of the sweeps themselves."""
    generator = Generator().manual_seed(seed)
    cost, begin = torch.rand(3, 8, 4, 5, generator=generator) + 0.1, torch.full((3, 4, 5), FAR)
    begin[:, 1, 2], begin[:, 3, 3] = 0.0, 0.7
    weight = torch.randn(3, 4, 5, generator=generator)

    def swept(cost: Tensor, begin: Tensor, sweeps: int) -> Tensor:
        v = begin
        for _ in range(sweeps):
            v = torch.minimum(v, (cost + around(v)).amin(1))
        return v

    found = []
    for way in (swept, ShortestWays.apply):
        inputs = [cost.clone().requires_grad_(), begin.clone().requires_grad_()]
        values = way(*inputs, 20)
        (values * weight).sum().backward()
        found.append([values.detach(), *(entry.grad for entry in inputs)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_one_goal_for_many_states_is_asked_for_once_and_means_the_same() -> None:
    states, goal, share = at((0, 0), (4, 2), (4, 4)), at((2, 2)), torch.ones(1, 1)
    made = network()
    torch.testing.assert_close(made(states, goal, share), made(states, goal.expand_as(states), share))


def test_what_is_learned_reaches_every_weight() -> None:
    torch.manual_seed(0)
    made = WayNetwork((2, 5, 5), 0.9, crossing=1.0, channels=4)
    made(torch.randn(16, 4, 50), torch.randn(16, 1, 50), torch.ones(16, 1, 1)).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in made.parameters())
    reached = {name for name, weight in made.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert {"beside.0.weight", "own.weight", "other.weight", "place.weight", "temper"} <= reached


def walk(places: list[tuple[float, float]], critic: Critic) -> Learner:
    """One row that remembers a walk past these places."""
    states = torch.tensor([places])
    memory = EpisodicMemory(1, len(places), 2, 1, 0)
    memory.begin()
    memory.write(states, states[..., :0], states[..., 0], states[..., :1])
    intrinsic = IntrinsicCost({"goal": GoalEnergy()})
    u = UniformWeights({"goal": [2, 2]})
    world: JEPA = stage().jepa
    return Learner(memory, world, nn.Identity(), intrinsic, critic, u, Generator().manual_seed(0))


AROUND = [(0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (2.0, 1.0), (1.0, 1.0), (0.0, 1.0), (0.0, 0.1)]
CRITIC = Critic([WayNetwork((2, 5, 5), 0.9, crossing=1.0)], terms=1, discount=0.9)


def shortest(target: WalkedWays) -> Tensor:
    memory = walk(AROUND, CRITIC).memory
    return target.steps(memory.state, memory.episode, memory.time)[0]


def test_a_place_that_is_passed_twice_is_a_short_cut() -> None:
    steps = shortest(WalkedWays(1, 1, near=0.5))
    assert torch.equal(steps, steps.T)
    assert steps[0, 5].item() == pytest.approx(1.1, abs=0.01)  # beside where it began, then one step back
    assert steps[0, 3].item() == pytest.approx(3, abs=0.01)
    assert shortest(WalkedWays(1, 1, near=0.05))[0, 5].item() == pytest.approx(5, abs=0.01)  # none is near enough


def test_steps_are_those_of_the_level() -> None:
    torch.testing.assert_close(shortest(WalkedWays(1, 1, stride=4, near=2.0)), 4 * shortest(WalkedWays(1, 1, near=0.5)))


def test_no_way_leads_from_one_walk_to_another() -> None:
    places = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 0.0]]])
    steps = WalkedWays(1, 1, near=0.5).steps(places, torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 0, 1]]))
    assert (steps[0, :2, 2:] >= NO_WAY).all()
    assert steps[0, 0, 1] == steps[0, 2, 3] == 1
    nothing = WalkedWays(1, 1).steps(places, torch.full((1, 4), -1), torch.zeros(1, 4, dtype=torch.long))
    assert (nothing >= NO_WAY).all()


def test_lessons_are_discounted_sums_along_the_way() -> None:
    """u (1 - gamma^n) / (1 - gamma)."""
    target, learner = WalkedWays(50, 4, near=0.5), walk(AROUND, CRITIC)
    steps, lesson = shortest(target), target(learner)
    places = torch.tensor(AROUND)
    begin, end = (torch.cdist(some, places).argmin(-1) for some in (lesson.states, lesson.goals))
    assert begin.shape == (50, 4)
    assert end.shape == (50, 1)
    assert len(begin.unique()) == len(end.unique()) == len(AROUND)
    away = steps[begin, end]
    torch.testing.assert_close(lesson.cost, 2 * (1 - 0.9**away) / 0.1)
    assert lesson.weight is not None
    weight = 0.9 ** (-2 * away) / (away + 1)  # of steps more or less, which change the sum by gamma^n ln gamma
    torch.testing.assert_close(lesson.weight, weight / weight.mean())


def test_a_metric_that_folds_makes_no_short_cut() -> None:
    learner = walk(AROUND, CRITIC)
    folded = learner._replace(metric=nn.Linear(2, 1), generator=Generator().manual_seed(0))
    nn.init.zeros_(folded.metric.weight)
    torch.testing.assert_close(WalkedWays(50, 4)(folded).cost, WalkedWays(50, 4)(learner).cost)


def test_lessons_are_drawn_from_walks_that_came_before_until_there_are_newer_ones() -> None:
    target = WalkedWays(200, 1, walks=2, near=0.5)
    for east in (0.0, 100.0, 200.0):
        lesson = target(walk([(x + east, y) for x, y in AROUND], CRITIC))
    assert set(lesson.states[..., 0].div(100).floor().flatten().tolist()) == {1.0, 2.0}


def test_a_critic_learns_ways_from_the_stream(tmp_path: Path) -> None:
    shards = collect_shards(tmp_path / "data")
    torch.manual_seed(0)
    members = [WayNetwork(SHAPE, 0.97, crossing=3.0, channels=4, sweeps=6)]
    made = CriticTraining(
        stage(),
        partial(IntrinsicCost, GOAL),
        Critic(members, terms=1),
        WalkedWays(8, 4),
        UniformWeights({"goal": [1, 1]}),
        partial(torch.optim.Adam, lr=1e-3),
    )
    before = {name: weight.clone() for name, weight in made.state_dict().items()}
    trainer(tmp_path).fit(made, datamodule=data(shards, levels=[{"length": 12, "stride": 1}]))
    found = {name.split(".")[0] for name, weight in made.state_dict().items() if not torch.equal(weight, before[name])}
    assert found == {"critic", "follower"}
    assert 0 <= float(made.trainer.callback_metrics["val/loss"]) < 1


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"state_shape=\[50\]"):
        WayNetwork((50,), 0.9, crossing=1.0)
    with pytest.raises(ValueError, match="sweeps=0"):
        WayNetwork((2, 5, 5), 0.9, crossing=1.0, sweeps=0)
    with pytest.raises(ValueError, match="crossing=0"):
        WayNetwork((2, 5, 5), 0.9, crossing=0)
    with pytest.raises(ValueError, match="terms=2: ways lead to the goal"):
        WayNetwork((2, 5, 5), 0.9, crossing=1.0, terms=2)
    with pytest.raises(ValueError, match="near=0"):
        WalkedWays(1, 1, near=0)
    with pytest.raises(ValueError, match="nothing was walked"):
        WalkedWays(1, 1)(walk([(0.0, 0.0)], CRITIC))
    learner = walk(AROUND, CRITIC)._replace(intrinsic=IntrinsicCost({"effort": Effort(1.0)}))
    with pytest.raises(ValueError, match="ways lead to goals, and the intrinsic cost has"):
        WalkedWays(1, 1)(learner)
