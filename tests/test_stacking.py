"""Stage 2: a level is trained on the states of the level below, frozen or jointly."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pretraining import collect_shards, trainer
from pretraining import stage as pretraining_stage
from stacking import ABOVE, WEIGHTS, batch, data, level, stacked

from lightning_jepa.actor.planners.explorer import Explorer
from lightning_jepa.actor.reaching import Reaching
from lightning_jepa.cost.critic import Critic, CriticNetwork
from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.cost.intrinsic import IntrinsicCost
from lightning_jepa.stages.critic_targets import ProgrammeTarget, ReturnTarget
from lightning_jepa.stages.critic_training import CriticTraining
from lightning_jepa.stages.hierarchical_stacking import HierarchicalStacking
from lightning_jepa.stages.imagined_plans import ImaginedPlans
from lightning_jepa.stages.weighing import UniformWeights
from lightning_jepa.types import Modulation
from lightning_jepa.world_model.level import Level
from lightning_jepa.world_model.metric import MetricSpace


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return collect_shards(tmp_path_factory.mktemp("data"))


def test_learning_to_reach_states_leaves_the_level_as_it_is(shards: str, tmp_path: Path) -> None:

    def trained(own: Level, weights: dict[str, float]) -> tuple[HierarchicalStacking, dict[str, Any]]:
        torch.manual_seed(0)
        stage = stacked(own=own, weights=weights, windows=2)
        fitted = trainer(tmp_path, max_epochs=8)
        fitted.fit(stage, datamodule=data(shards, (5, 3), (3, 6)))
        return stage, dict(fitted.callback_metrics)

    torch.manual_seed(2)
    _, alone = trained(level(), WEIGHTS)
    torch.manual_seed(2)
    own = level()
    own.reach = Reaching(81, 3, 2, 2.45, hidden=32)
    stage, found = trained(own, WEIGHTS | {"reach": 1.0})
    assert found["val/prediction"] == alone["val/prediction"]
    assert 0 < found["val/reach"] < 1
    (lifted,) = stage.viewed(batch(shards, (5, 3)))
    with pytest.raises(ValueError, match="name exactly these"):
        stacked(own=own).weighted(stage.terms((lifted,))[0])


@pytest.mark.parametrize("joint", [0.0, 0.1])
def test_what_is_below_learns_only_if_it_is_to(shards: str, joint: float) -> None:
    stage = stacked(joint=joint)
    windows = batch(shards, (5, 3), *[(5, 1), (4, 6)][: 2 if joint else 0])
    stage.log = stage.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    stage.training_step(windows, 0).backward()
    learns = {name: weight.grad is not None for name, weight in stage.named_parameters()}
    assert all(learns[name] for name in learns if name.startswith("jepa.levels"))
    assert {learns[name] for name in learns if name.startswith("jepa.base")} == {joint > 0}
    assert int(stage.level.seen) == 4


def test_all_levels_below_learn_by_their_own_loss(shards: str) -> None:
    """Level 3 jointly: the loss is the sum of three, and whoever has no windows is told."""
    second = stacked()
    third = stacked(second, level(2, 2, 1, ABOVE), joint=0.1)
    base = second.previous
    windows = batch(shards, (4, 6), (5, 3), (5, 1), (4, 6))
    logged = {}
    third.log = lambda name, value, **_: logged.update({name: value})  # type: ignore[method-assign]
    third.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    loss = third.training_step(windows, 0)
    both = ((second, windows[1:]), (base, windows[2:]))
    parts = [stage.weighted(stage.terms(stage.viewed(some))[0]) for stage, some in both]
    torch.testing.assert_close(logged["train/below"], sum(parts))
    torch.testing.assert_close(loss, logged["train/loss"] + sum(parts))
    loss.backward()
    assert all(weight.grad is not None for weight in base.jepa.parameters())
    with pytest.raises(ValueError, match="add theirs to data.levels"):
        third.training_step(windows[:2], 0)


def test_levels_below_learn_more_slowly(shards: str, tmp_path: Path) -> None:
    def moved(joint: float) -> dict[str, float]:
        stage = stacked(joint=joint)
        before = {name: weight.detach().clone() for name, weight in stage.named_parameters()}
        trainer(tmp_path, max_epochs=1).fit(
            stage, datamodule=data(shards, (5, 3), *[(5, 1), (4, 6)][: 2 if joint else 0])
        )
        now = {name: weight.detach() for name, weight in stage.named_parameters()}
        return {name: float((weight - before[name]).abs().max()) for name, weight in now.items()}

    alone, jointly = moved(0.0), moved(0.01)
    below = [name for name in alone if name.startswith("jepa.base")]
    own = [name for name in alone if name.startswith("jepa.levels")]
    assert max(alone[name] for name in below) == 0
    assert 0 < max(jointly[name] for name in below) < 0.1 * max(jointly[name] for name in own)


def test_training_lowers_the_energy_of_macro_steps(shards: str, tmp_path: Path) -> None:
    stage, windows = stacked(windows=2), batch(shards, (5, 3), (3, 6))

    def energy() -> float:
        with torch.no_grad():
            return float(stage.weighted(stage.terms(stage.viewed(windows))[0]))

    before = energy()
    fitted = trainer(tmp_path, max_epochs=12)
    fitted.fit(stage, datamodule=data(shards, (5, 3), (3, 6)))
    assert energy() < 0.95 * before
    assert {"val/prediction", "monitor/effective_rank", "probe/agent_x_r2"} <= set(fitted.callback_metrics)
    assert int(stage.level.seen) > 2


def test_a_level_learns_its_latent_variable(shards: str, tmp_path: Path) -> None:
    """z and its prior are terms of a level as they are of a JEPA of pictures."""
    stage = stacked(own=level(codes=3), weights=WEIGHTS | {"prior": 1.0}, windows=2)
    before = {name: weight.clone() for name, weight in stage.level.jepa.named_parameters()}
    fitted = trainer(tmp_path)
    fitted.fit(stage, datamodule=data(shards, (5, 3), (3, 6)))
    assert fitted.callback_metrics["train/prior"] > 0
    changed = {name for name, weight in stage.level.jepa.named_parameters() if not torch.equal(weight, before[name])}
    assert {"encoder", "predictor", "latent"} == {name.split(".")[0] for name in changed}


def test_a_level_that_pools_reads_the_steps_between(shards: str) -> None:
    stage = stacked(own=level(pool=2))
    (lifted,) = stage.viewed(batch(shards, (7, 1)))
    assert lifted.observations.shape[1] == lifted.truth.shape[1] == 3
    assert stage.acted(lifted).shape == (4, 2, 2)
    assert stage.terms((lifted,))[0]["prediction"] > 0


@pytest.mark.parametrize(
    ("windows", "given", "said"),
    [
        ([(5, 2)], {}, "windows of 5 frames, 2 steps apart: a step of this level has 3"),
        ([(6, 1)], {"own": level(pool=2)}, "a length of 1 more than a multiple of 3"),
        ([(5, 3), (4, 4)], {"windows": 2}, "frames 4 steps apart, a step of this level has 3"),
        ([(2, 3)], {}, "2 states, 1 actions, horizon=2"),
    ],
)
def test_windows_that_do_not_fit_are_refused(
    shards: str, windows: list[tuple[int, int]], given: dict[str, Any], said: str
) -> None:
    stage = stacked(**given)
    with pytest.raises(ValueError, match=said):
        stage.terms(stage.viewed(batch(shards, *windows)))


def test_windows_that_nobody_reads_are_refused(shards: str) -> None:
    with pytest.raises(ValueError, match=r"2 levels of windows, stage\.windows=1 of which are read"):
        stacked().training_step(batch(shards, (5, 3), (3, 6)), 0)


@pytest.mark.parametrize("windows", [(4, 3), (2, 12)])
def test_a_critic_judges_the_states_of_a_level(shards: str, windows: tuple[int, int], tmp_path: Path) -> None:
    """TC(s2) of level 2 is learned from what its states cost later, level by level as below."""
    stage = stacked()
    torch.nn.init.normal_(stage.level.jepa.predictor.last.weight)  # it starts with "nothing changes"
    stage.level.remember(torch.randn(64, 3, 2))
    members = [CriticNetwork(MetricSpace(81, 4, 8), 4, terms=1, hidden=8)]
    explorer = partial(Explorer, rounds=2, origins=4, walks=4, walk_steps=4, nodes=24, branches=4, branch_steps=2)
    plans = ImaginedPlans(partial(explorer, action_size=2, action_bound=2.0), graphs=3)
    target = ReturnTarget(16, 2, 0.9, 3) if windows[0] > 2 else ProgrammeTarget(16, plans, rows=2)
    intrinsic = partial(IntrinsicCost, {"goal": partial(GoalEnergy, width=1.0)})
    optimizer = partial(torch.optim.Adam, lr=1e-3)
    one = UniformWeights({"goal": [1, 1]})
    critic = CriticTraining(stage, intrinsic, Critic(members, terms=1), target, one, optimizer, level=2)
    before = {name: weight.detach().clone() for name, weight in critic.named_parameters()}
    trainer(tmp_path).fit(critic, datamodule=data(shards, windows))
    moved = {name.split(".")[0] for name, weight in critic.named_parameters() if not torch.equal(before[name], weight)}
    assert moved == {"critic", "follower"}
    (window,) = batch(shards, windows)
    critic.remember(window)
    memory = critic.learner().memory
    states = stage.hierarchy.lift(stage.hierarchy.encode(window.observations, window.body), 2)
    assert torch.allclose(memory.ends()[1], states[:, -1], atol=1e-5)
    done = stage.hierarchy.macros(window.actions, 2) if windows[1] == 3 else torch.full((4, 1, 2), torch.nan)
    held = memory.at(torch.arange(4)[:, None], torch.arange(done.shape[1])).action
    assert torch.allclose(held, done, equal_nan=True)
    assert critic.cost.forward(states[:, None], done[:, None], Modulation(states[:, 0])).shape == (4, 1, windows[0])
    with pytest.raises(ValueError, match="a critic of level 2, but the stage below has one level"):
        CriticTraining(pretraining_stage(), intrinsic, Critic(members, terms=1), target, one, optimizer, level=2)
