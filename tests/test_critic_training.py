"""Stages 3 and 4 on a small world: what they learn from, what they train, and what they leave alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from plane import SPACE, Plane
from pretraining import SIZE, collect_shards, data, stage, trainer
from torch import Generator, Tensor, nn

from data_pipelines.collect import Collection
from data_pipelines.worlds.rooms import RoomsWorld, TwoRoomsLayouts
from lightning_jepa.actor.planners.cem import CEM
from lightning_jepa.actor.planners.explorer import Explorer
from lightning_jepa.actor.policy import MixturePolicy
from lightning_jepa.agent import Agent
from lightning_jepa.cost.critic import Critic, CriticNetwork
from lightning_jepa.cost.effort import Effort
from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.cost.intrinsic import IntrinsicCost
from lightning_jepa.memory.episodic import EpisodicMemory
from lightning_jepa.stages.actor_distillation import ActorDistillation
from lightning_jepa.stages.critic_targets import DeltaTarget, Learner, ProgrammeTarget, ReturnTarget
from lightning_jepa.stages.critic_training import CriticTraining
from lightning_jepa.stages.imagined_plans import ImaginedPlans
from lightning_jepa.stages.teacher import Teacher
from lightning_jepa.stages.weighing import UniformWeights
from lightning_jepa.types import Modulation
from lightning_jepa.world_model.metric import MetricSpace

ADAM = partial(torch.optim.Adam, lr=1e-3)
GOAL = partial(IntrinsicCost, {"goal": partial(GoalEnergy, width=1.0)})
ONE = UniformWeights({"goal": [1, 1]})
TINY = {"rounds": 2, "origins": 4, "walks": 4, "walk_steps": 4, "nodes": 24, "branches": 4, "branch_steps": 2}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return collect_shards(tmp_path_factory.mktemp("critic"))


def plans(graphs: int = 3, cache: Path | None = None, **numbers: float) -> ImaginedPlans:
    explorer = partial(Explorer, **{**TINY, **numbers}, action_size=2, action_bound=2.45)
    return ImaginedPlans(explorer, graphs, cache=None if cache is None else str(cache))


def critic_stage(cache: Path | None = None) -> CriticTraining:
    torch.manual_seed(0)
    members = [CriticNetwork(MetricSpace(SIZE, 4, 8), 4, terms=1, hidden=8) for _ in range(2)]
    target = ProgrammeTarget(64, plans(cache=cache), rows=2)
    return CriticTraining(stage(), GOAL, Critic(members, terms=1), target, ONE, ADAM)


def graphs_of(module: CriticTraining) -> ImaginedPlans:
    assert isinstance(module.target, ProgrammeTarget)
    return module.target.plans


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_the_critic_learns_and_nothing_else_does(shards: str, tmp_path: Path) -> None:
    module, fingerprint = critic_stage(), critic_stage().intrinsic.fingerprint
    before = weights(module)
    trainer(tmp_path).fit(module, datamodule=data(shards, levels=[{"length": 2, "stride": 12}]))
    found = changed(before, weights(module))
    assert {name.split(".")[0] for name in found} == {"critic", "follower"}
    assert "critic.signature" in found
    module.critic.check(fingerprint)
    assert module.intrinsic.fingerprint == fingerprint
    assert float(module.trainer.callback_metrics["val/loss"]) >= 0


def test_a_changed_intrinsic_cost_ends_training(shards: str, tmp_path: Path) -> None:
    module = critic_stage()

    def tamper(*_: object) -> None:
        next(module.intrinsic.buffers()).add_(1)

    module.on_train_epoch_end = tamper  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="the critic was trained for the intrinsic cost"):
        trainer(tmp_path, max_epochs=1).fit(module, datamodule=data(shards, levels=[{"length": 2, "stride": 12}]))


def test_graphs_are_taken_from_the_cache_of_the_same_world_model(shards: str, tmp_path: Path) -> None:
    cache = tmp_path / "graphs.pt"
    first, second = (critic_stage(cache) for _ in range(2))
    batch = next(iter(data(shards, levels=[{"length": 2, "stride": 12}]).train_dataloader()))
    for module in (first, second):
        module.remember(batch[0])
    while graphs_of(first).missing:
        first.target(first.learner())
    second.target(second.learner())
    assert graphs_of(second).missing == 0
    drawn = [graphs_of(module).draw(50, Generator().manual_seed(3)) for module in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    assert first.target.unseen().preparation == ("graph", 0, 2)  # validation does not look at the graphs of training

    def made(**numbers: float) -> int:
        """In the first step."""
        target = ProgrammeTarget(64, plans(cache=cache, **numbers), rows=1)
        other = CriticTraining(second.previous, GOAL, second.critic, target, ONE, ADAM)
        other.remember(batch[0])
        other.target(other.learner())
        return graphs_of(other).made

    assert [made(), made(branches=5)] == [3, 1]  # taken, and made anew as others were wanted
    nn.init.zeros_(next(second.previous.metric.parameters()))
    assert made() == 1


class Squares(nn.Module):
    """A critic to bootstrap from: TC(s) = s_0 ^ 2."""

    discount = 0.9

    def forward(self, states: Tensor, modulation: Modulation) -> Tensor:
        return states[..., 0].square()


def chain(target: object) -> Learner:
    """One row: states 0, 1, ..., 9, the action t in state t, and effort as only cost."""
    memory = EpisodicMemory(1, 10, 1, 1, 0)
    memory.begin()
    time = torch.arange(10.0)[None, :, None]
    memory.write(time, time[..., :0], time[..., 0], time)
    intrinsic = IntrinsicCost({"effort": Effort(1.0)})
    ranges = UniformWeights({"effort": [2, 2]})
    return Learner(memory, Plane(), nn.Identity(), intrinsic, Squares(), ranges, Generator().manual_seed(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("trace", [0.0, 0.7, 1.0])
def test_returns_are_those_of_the_equation(trace: float) -> None:
    """G[n] = c[n] + gamma TC(s[n]), G[k] = c[k] + gamma ((1 - lambda) TC(s[k]) + lambda G[k + 1])."""
    lesson = ReturnTarget(40, steps=3, trace=trace, reach=2)(chain(None))
    for state, cost in zip(lesson.states[:, 0].tolist(), lesson.cost.tolist(), strict=True):
        total = (state + 3) ** 2
        for k in (2, 1, 0):
            after = (state + k + 1) ** 2
            total = 2 * (state + k) ** 2 + 0.9 * (total if k == 2 else (1 - trace) * after + trace * total)
        assert cost == pytest.approx(total, rel=1e-5)
    assert ((lesson.goals >= lesson.states) & (lesson.goals <= 9)).all()


def test_delta_is_the_energy_so_many_steps_later() -> None:
    """TC(s[tau]) = u . IC(s[tau + delta]), whose action was taken the step before."""
    lesson = DeltaTarget(40, delta=4, reach=4)(chain(None))
    torch.testing.assert_close(lesson.cost, 2 * (lesson.states[:, 0] + 3).square())
    with pytest.raises(ValueError, match="this memory keeps 10 moments"):
        DeltaTarget(4, delta=10, reach=1)(chain(None))
    with pytest.raises(ValueError, match="trace=2"):
        ReturnTarget(4, 3, 2, 1)


def test_imagined_plans_know_the_way_around_a_wall() -> None:
    """In a plane with a wall and a door the cost to go follows the way, and first moves lead along it."""
    explorer = partial(
        Explorer, rounds=3, origins=16, walks=8, walk_steps=10, nodes=160, branches=12, branch_steps=2, **SPACE
    )
    found = ImaginedPlans(explorer, graphs=1, discount=0.95)
    here, there = torch.tensor([[-3.0, -2.0]]), torch.tensor([[3.0, -2.0]])
    intrinsic = IntrinsicCost({"goal": GoalEnergy(width=0.5)})
    found.add(here, there, Plane(wall=True), nn.Identity(), intrinsic, ONE, Generator().manual_seed(0))
    lesson = found.draw(3000, Generator().manual_seed(0))
    s, g = lesson.states, lesson.goals
    door = torch.tensor([0.0, 4.0])
    across = s[:, 0].sign() != g[:, 0].sign()
    way = torch.where(across, (s - door).norm(dim=-1) + (g - door).norm(dim=-1), (s - g).norm(dim=-1))
    steps = torch.log1p(-(1 - 0.95) * lesson.cost) / torch.log(torch.tensor(0.95))
    assert torch.corrcoef(torch.stack([steps, way]))[0, 1] > 0.95
    inside = (s[:, 0].abs() > 2) & across
    towards = torch.nn.functional.cosine_similarity(lesson.action, door - s, dim=-1)[inside]
    assert towards.mean() > 0.8
    with pytest.raises(ValueError, match="give counts of at least 1"):
        ImaginedPlans(explorer, graphs=0)


class Sore(nn.Module):
    """IC(s) = 1 where x > 2, else 0."""

    def forward(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        return (states[..., 0] > 2).float()


def test_imagined_plans_stay_where_the_way_is_not_worth_it() -> None:
    """V(i) = min(u . IC(i) / (1 - gamma), ...): a goal that hurts forever is not gone to from where nothing hurts."""
    explorer = partial(
        Explorer, rounds=3, origins=16, walks=8, walk_steps=10, nodes=160, branches=12, branch_steps=2, **SPACE
    )
    found = ImaginedPlans(explorer, graphs=1, discount=0.95)
    intrinsic = IntrinsicCost({"goal": GoalEnergy(width=0.5), "sore": Sore()})
    here, there, u = (
        torch.tensor([[-3.0, 0.0]]),
        torch.tensor([[4.0, 0.0]]),
        UniformWeights({"goal": [1, 1], "sore": [5, 5]}),
    )
    found.add(here, there, Plane(wall=True), nn.Identity(), intrinsic, u, Generator().manual_seed(0))
    lesson = found.draw(3000, Generator().manual_seed(0))
    hurts, aim_hurts = lesson.states[:, 0] > 2, lesson.goals[:, 0] > 2
    there_already = (lesson.states == lesson.goals).all(-1)
    assert not (aim_hurts & ~hurts).any()
    assert (~aim_hurts & ~hurts).any()
    assert (lesson.cost[~aim_hurts & ~hurts] < 1 / (1 - 0.95)).all()
    assert (lesson.cost[hurts] < 5 / (1 - 0.95)).all()  # it leaves
    speed = lesson.action.norm(dim=-1)
    assert (speed[there_already & ~hurts] == 0).all()
    assert (speed[~there_already] > 0.5).all()
    assert (lesson.action[hurts & ~aim_hurts, 0] < 0).float().mean() > 0.9
    with pytest.raises(ValueError, match="none of 1 pairs of imagined nodes is connected"):
        [found.draw(1, Generator().manual_seed(seed)) for seed in range(40)]  # the first where it hurts


def test_plans_are_collected_and_compiled(shards: str, tmp_path: Path) -> None:
    """Mode-2 acts and is recorded; the policy is fitted to it, and nothing else is."""
    critic = critic_stage()
    planner = CEM(4, 1, 2, 5, 2, 2.45)
    torch.manual_seed(0)
    policy = MixturePolicy(MetricSpace(SIZE, 4, 8), 4, 2, 2.45, terms=1, hidden=8)
    agent, student = (
        Agent(critic.jepa, critic.cost, planner, 3, noise=0.5, policy=p, mode=mode)
        for p, mode in ((None, "deliberate"), (policy, "reactive"))
    )
    world = RoomsWorld(TwoRoomsLayouts(), episode_steps=9)
    root = tmp_path / "plans"
    for teacher, count in ((Teacher(agent, ONE), 4), (Teacher(agent, ONE, student), 8)):
        Collection(world, teacher, str(root), {"train": count, "val": 4}, episodes_per_shard=4).run()
    plans_data = data(str(root), levels=[{"length": 4, "stride": 1}], observation_shape=(2, 33, 33))
    (window,) = next(iter(plans_data.train_dataloader()))
    made = window.plans.isfinite().all(-1)[:, :, 0]
    assert window.plans.shape[2:] == (1, 5 * 2)
    assert torch.equal(made, window.times[:, :-1] % 3 == 0)
    assert window.goal.shape == (4, 2, 33, 33)
    assert (window.weights == 1).all()
    module = ActorDistillation(
        critic, policy, plans(), {"perceived": 1, "imagined": 1, "programme": 1}, ADAM, drawn=32, rows=2
    )
    before = weights(module)
    trainer(tmp_path).fit(module, datamodule=plans_data)
    assert {name.split(".")[0] for name in changed(before, weights(module))} == {"policy"}
    assert set(module.trainer.callback_metrics) >= {"val/perceived", "val/imagined", "train/programme"}
    with pytest.raises(ValueError, match="no plans are in this batch"):
        module.terms(next(iter(data(shards).train_dataloader()))[0])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"u has ranges for \['pain'\], the intrinsic cost has the terms"):
        CriticTraining(
            stage(), GOAL, critic_stage().critic, ReturnTarget(4, 3, 1, 1), UniformWeights({"pain": [0, 1]}), ADAM
        )
    with pytest.raises(ValueError, match="give \\[least, largest\\]"):
        UniformWeights({"goal": [2, 1]})
    one, two = (MixturePolicy(nn.Identity(), 4, 2, 2.45, terms=terms) for terms in (1, 2))
    with pytest.raises(ValueError, match="give a number of 0 or more for each of"):
        ActorDistillation(critic_stage(), one, plans(), {"perceived": 1}, ADAM)
    with pytest.raises(ValueError, match="the policy is made for 2 terms"):
        ActorDistillation(critic_stage(), two, plans(), {"perceived": 1, "imagined": 1, "programme": 1}, ADAM)
