"""H-JEPA: s2 = Enc2(s), a2 = Act2(a[0..n-1]), s2[t+n] = Pred2(s2[t], a2); plans go top-down, by subgoals."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plane import SPACE, Plane
from pretraining import SHAPE, collect_shards, trainer
from pretraining import data as pretraining_data
from pretraining import stage as pretraining_stage
from torch import Generator, Tensor, nn

from lightning_jepa import checkpoint
from lightning_jepa.actor.planners.cem import CEM
from lightning_jepa.actor.planners.explorer import Explorer
from lightning_jepa.actor.planners.graph import GraphSearch
from lightning_jepa.actor.planners.hierarchical import HierarchicalPlanner
from lightning_jepa.actor.planners.reactive import Reactive
from lightning_jepa.actor.reaching import Reaching
from lightning_jepa.cost.critic import Critic, CriticNetwork
from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.cost.intrinsic import IntrinsicCost
from lightning_jepa.cost.subgoal import SubgoalEnergy
from lightning_jepa.stages.critic_targets import ProgrammeTarget, ReturnTarget
from lightning_jepa.stages.critic_training import CriticTraining
from lightning_jepa.stages.hierarchical_stacking import HierarchicalStacking
from lightning_jepa.stages.imagined_plans import ImaginedPlans
from lightning_jepa.stages.jepa_pretraining import JEPAPretraining
from lightning_jepa.stages.weighing import UniformWeights
from lightning_jepa.types import Modulation, Window
from lightning_jepa.world_model.convolutional import ConvPredictor
from lightning_jepa.world_model.criteria.temporal_contrast import TemporalContrast
from lightning_jepa.world_model.criteria.vicreg import VarianceCovariance
from lightning_jepa.world_model.hierarchy import HierarchicalJEPA
from lightning_jepa.world_model.jepa import JEPA
from lightning_jepa.world_model.level import Level, MacroAction, MapAbove, Same, Whitened
from lightning_jepa.world_model.metric import MetricSpace

ABOVE = (1, 9, 9)
WEIGHTS = {"prediction": 2.0, "variance": 1.0, "covariance": 1.0, "contrast": 0.1}


def level(steps: int = 3, action_size: int = 2, size: int = 2, below: tuple[int, ...] = SHAPE, **given: Any) -> Level:
    encoder = MapAbove(below, 1, hidden=4) if below[0] > 1 else Same(81)
    jepa = JEPA(encoder, ConvPredictor(ABOVE, size, hidden=4))
    macro = MacroAction(steps, action_size, size, hidden=8, action_scale=2.45 if action_size == 2 else 1.0)
    return Level(jepa, macro, MetricSpace(81, size=3, hidden=8), **given)


def stacked(below: JEPAPretraining | None = None, own: Level | None = None, **given: Any) -> HierarchicalStacking:
    below = below if below is not None else pretraining_stage()
    torch.manual_seed(1)
    arguments: dict[str, Any] = {
        "criteria": {"vicreg": VarianceCovariance(state_shape=ABOVE)},
        "weights": WEIGHTS,
        "optimizer": partial(torch.optim.AdamW, lr=1e-2),
        "horizon": 2,
        "every": 1,
        "geometry": TemporalContrast,
        **given,
    }
    return HierarchicalStacking(below, own if own is not None else level(), **arguments)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return collect_shards(tmp_path_factory.mktemp("data"))


def data(root: str, *levels: tuple[int, int]) -> Any:
    return pretraining_data(root, levels=[{"length": length, "stride": stride} for length, stride in levels])


def batch(root: str, *levels: tuple[int, int]) -> tuple[Window, ...]:
    made = data(root, *levels)
    made.setup("fit")
    return next(iter(made.train_dataloader()))  # type: ignore[no-any-return]


def test_a_level_is_a_jepa_over_the_states_below() -> None:
    stage = stacked()
    model, own = stage.hierarchy, stage.level
    s, actions = torch.randn(4, model.state_size), torch.randn(4, 6, 2)
    s2 = own.jepa.encoder(s[:, None])[:, 0]
    a2 = own.macro(actions.unflatten(1, (2, 3)))
    one = own.jepa.predictor(s2[:, None], a2[:, :1])
    two = own.jepa.predictor(one[:, None], a2[:, 1:])
    assert torch.allclose(model.predicted(s, actions, 2), torch.stack([one, two], 1), atol=1e-5)
    assert torch.equal(model.predicted(s, actions, 1), model.base.predict(s, actions))
    assert a2.abs().max() <= 1


def test_levels_stand_on_each_other() -> None:
    second = stacked()
    third = stacked(second, level(2, 2, 1, ABOVE))
    model = third.hierarchy
    assert (model.depth, model.stride(2), model.stride(3)) == (3, 3, 6)
    actions = torch.randn(5, 6, 2)
    below = model.macros(actions.view(5, 2, 3, 2), 2)
    assert torch.equal(model.macros(actions, 3), model.level(3).macro(below))
    states = torch.randn(2, 4, model.state_size)
    assert torch.equal(model.lift(states, 3), model.level(3).lift(model.level(2).lift(states)))
    assert [shape[-1] for shape in (model.lift(states, n).shape for n in (1, 2, 3))] == [162, 81, 81]


@settings(deadline=None, max_examples=20)
@given(pool=st.integers(1, 5), times=st.integers(1, 7))
def test_pooling_is_the_mean_of_the_last_states(pool: int, times: int) -> None:
    states = torch.randn(2, times, 6)
    pooled = level(below=ABOVE, pool=pool).pooled(states)
    for time in range(times):
        assert torch.allclose(pooled[:, time], states[:, max(0, time - pool + 1) : time + 1].mean(1), atol=1e-5)


def test_white_macro_actions_are_those_that_were_done() -> None:
    """a2 = mean + root w: where w is white, a2 has the mean and the covariance of what was seen."""
    own = level(remembered=400)
    with pytest.raises(ValueError, match="has seen 0 chunks"):
        own.support()
    chunks = torch.randn(500, 3, 2) * torch.tensor([2.0, 0.3])
    for some in chunks.split(100):
        own.remember(some)
    assert int(own.seen) == 500
    done = own.macro(chunks[100:])  # the newest 400 are kept
    mean, root = own.support()
    assert torch.allclose(mean, done.mean(0), atol=1e-4)
    assert torch.allclose(root @ root.T, done.T.cov(correction=0), atol=1e-4)
    white = Whitened(own)
    s, w = torch.randn(2, 81), torch.randn(2, 3, 1, 2)
    assert torch.allclose(white.rollout(s, w), own.jepa.rollout(s, (mean + w @ root.T).clamp(-1, 1)))
    assert torch.allclose(white.white(mean + w @ root.T), w, atol=1e-3)


def test_what_reaches_a_state_is_learned_from_where_actions_led() -> None:
    """a[0..n-1] = A(s2, s2'): in the plane, steps whose sum is the way from one to the other."""
    torch.manual_seed(0)
    policy = Reaching(2, 3, 2, action_bound=1.0, hidden=32)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(300):
        s, done = torch.randn(64, 2), 0.5 * torch.randn(64, 1, 2).clamp(-1, 1).expand(-1, 3, -1)
        optimizer.zero_grad()
        policy.misfit(s, s + done.sum(1), done).mean().backward()
        optimizer.step()
    s, way = torch.randn(32, 2), torch.rand(32, 2) * 2 - 1
    assert (policy(s, s + way).sum(1) - way).norm(dim=-1).mean() < 0.3
    assert policy(10 * s, -10 * s).norm(dim=-1).max() <= 1 + 1e-5


def test_learning_to_reach_states_leaves_the_level_as_it_is(shards: str, tmp_path: Path) -> None:

    def trained(own: Level, weights: dict[str, float]) -> tuple[HierarchicalStacking, dict[str, Any]]:
        torch.manual_seed(0)
        stage = stacked(own=own, weights=weights)
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
    windows = batch(shards, (5, 3), (5, 1), (4, 6))
    stage.log = stage.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    stage.training_step(windows, 0).backward()
    learns = {name: weight.grad is not None for name, weight in stage.named_parameters()}
    assert all(learns[name] for name in learns if name.startswith("jepa.levels"))
    assert {learns[name] for name in learns if name.startswith("jepa.base")} == {joint > 0}
    assert int(stage.level.seen) == 4


def test_levels_below_learn_more_slowly(shards: str, tmp_path: Path) -> None:
    def moved(joint: float) -> dict[str, float]:
        stage = stacked(joint=joint)
        before = {name: weight.detach().clone() for name, weight in stage.named_parameters()}
        trainer(tmp_path, max_epochs=1).fit(stage, datamodule=data(shards, (5, 3), (5, 1), (4, 6)))
        now = {name: weight.detach() for name, weight in stage.named_parameters()}
        return {name: float((weight - before[name]).abs().max()) for name, weight in now.items()}

    alone, jointly = moved(0.0), moved(0.01)
    below = [name for name in alone if name.startswith("jepa.base")]
    own = [name for name in alone if name.startswith("jepa.levels")]
    assert max(alone[name] for name in below) == 0
    assert 0 < max(jointly[name] for name in below) < 0.1 * max(jointly[name] for name in own)


def test_training_lowers_the_energy_of_macro_steps(shards: str, tmp_path: Path) -> None:
    stage, windows = stacked(), batch(shards, (5, 3), (3, 6))
    stage.windows = 2

    def energy() -> float:
        with torch.no_grad():
            return float(stage.weighted(stage.terms(stage.viewed(windows))[0]))

    before = energy()
    fitted = trainer(tmp_path, max_epochs=12)
    fitted.fit(stage, datamodule=data(shards, (5, 3), (3, 6)))
    assert energy() < 0.9 * before
    assert {"val/prediction", "monitor/effective_rank", "probe/agent_x_r2"} <= set(fitted.callback_metrics)
    assert int(stage.level.seen) > 2


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


def test_levels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="a macro-action of 7 numbers for 3 actions of 2: .* between 1 and 6"):
        MacroAction(3, 2, 7)
    with pytest.raises(ValueError, match="expected \\[3, 2\\]"):
        MacroAction(3, 2, 2)(torch.zeros(4, 2, 2))
    with pytest.raises(ValueError, match="2 channels above a map"):
        MapAbove((2, 9, 9), 2)
    with pytest.raises(ValueError, match="states of 40 numbers"):
        MapAbove((2, 9, 9), 1)(torch.zeros(1, 1, 40))
    with pytest.raises(ValueError, match="predictor takes actions of 2 numbers"):
        Level(JEPA(Same(81), ConvPredictor(ABOVE, 2, hidden=4)), MacroAction(3, 2, 1))
    base = pretraining_stage().jepa
    assert isinstance(base, JEPA)
    with pytest.raises(ValueError, match="level 2 stands for actions of 4 numbers, those of level 1 have 2"):
        HierarchicalJEPA(base, [level(3, 4, 2)])
    with pytest.raises(ValueError, match="level 3: this hierarchy has the levels 1 to 2"):
        stacked().hierarchy.level(3)
    with pytest.raises(ValueError, match=r"joint=2\.0"):
        stacked(joint=2.0)
    with pytest.raises(ValueError, match="5 actions: a step of level 2 has 3"):
        stacked().hierarchy.predicted(torch.zeros(1, 162), torch.zeros(1, 5, 2), 2)


def test_weights_of_another_lower_level_are_refused() -> None:
    wide, weights = stacked(own=level(size=3)), stacked().state_dict()
    with pytest.raises(ValueError, match="is of another architecture"):
        checkpoint.load_weights(wide, weights, "other.ckpt")


@pytest.mark.parametrize("windows", [(4, 3), (2, 12)])
def test_a_critic_judges_the_states_of_a_level(shards: str, windows: tuple[int, int], tmp_path: Path) -> None:
    """TC(s2) of level 2 is learned from what its states cost later, level by level as below."""
    stage = stacked()
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


class Far(nn.Module):
    """Level 2 of the plane: one step of it is `steps` steps in the same direction."""

    action_size = 2

    def __init__(self, plane: Plane, steps: int = 4) -> None:
        super().__init__()
        self.plane, self.steps, self.metric = plane, steps, nn.Identity()
        self.reach: Any = None

    def white(self, actions: Tensor) -> Tensor:
        return actions

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        return observations

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        path = self.plane.rollout(s, actions.repeat_interleave(self.steps, 2))
        self.plane.steps -= (self.steps - 1) * actions.shape[1] * actions.shape[2]  # one evaluation each
        return path[:, :, self.steps - 1 :: self.steps]


class TwoLevels(Plane):
    """The plane with its second level."""

    depth = 2

    def above(self, number: int) -> Far:
        assert number == 2
        return Far(self)


def planner(**given: Any) -> HierarchicalPlanner:
    low = CEM(samples=32, iterations=3, elites=6, horizon=4, **SPACE)  # type: ignore[arg-type]
    high = CEM(samples=512, iterations=4, elites=24, horizon=5, **SPACE)  # type: ignore[arg-type]
    return HierarchicalPlanner({"level1": low, "level2": high}, GoalEnergy, SubgoalEnergy, **given)


def walked(of: Any, steps: int, start: Tensor, goal: Tensor) -> tuple[Tensor, TwoLevels, int]:
    """Where an agent gets that takes two actions of each plan; the world model, and the evaluations it was told."""
    model, generator, modulation, s, spent = (
        TwoLevels(wall=True),
        Generator().manual_seed(0),
        Modulation(goal),
        start,
        0,
    )
    for _ in range(steps // 2):
        plan = of.plan(s, model, GoalEnergy(), modulation, None, generator)
        spent += plan.evaluations
        s = plan.states[:, 1]
    return s, model, spent


def test_subgoals_lead_around_a_wall_that_stops_a_short_sight() -> None:
    """Behind a wall whose door is at y in (3, 5): four steps ahead the way to it looks like a detour."""
    start, goal = torch.tensor([[-3.0, 0.0], [-2.0, -0.5]]), torch.tensor([[3.0, 0.0], [3.0, 1.0]])
    found, model, spent = walked(planner(hold=1), 24, start, goal)
    short, _, _ = walked(CEM(samples=32, iterations=3, elites=6, horizon=4, **SPACE), 24, start, goal)  # type: ignore[arg-type]
    assert (short[:, 0] < -0.9).all()
    assert ((found - goal).norm(dim=-1) < 1).all()
    assert spent == model.steps


def test_a_level_in_mode_1_does_what_reaches_the_subgoal_without_a_search() -> None:
    class Known(TwoLevels):
        def above(self, number: int) -> Far:
            far = super().above(number)
            far.reach = lambda s, wanted: ((wanted - s) / far.steps)[:, None].expand(-1, far.steps, -1)
            return far

    start, goal = torch.tensor([[-5.0, 4.0]]), torch.tensor([[5.0, 4.0]])
    high = CEM(samples=512, iterations=4, elites=24, horizon=5, **SPACE)  # type: ignore[arg-type]
    of = HierarchicalPlanner({"level1": Reactive(4, 1.0), "level2": high}, GoalEnergy, SubgoalEnergy)
    model, generator = Known(), Generator().manual_seed(0)
    found = of.plan(start, model, GoalEnergy(), Modulation(goal), None, generator)
    assert torch.allclose(found.states[:, -1], of.subgoals[0], atol=1e-5)
    assert found.evaluations == model.steps == 512 * 4 * 5 + 4
    searching = planner()
    searching.plan(start, model, GoalEnergy(), Modulation(goal), None, Generator().manual_seed(0))
    assert torch.equal(searching.subgoals[0], of.subgoals[0])
    with pytest.raises(ValueError, match="what a policy proposes, and there is none"):
        of.plan(start, TwoLevels(), GoalEnergy(), Modulation(goal + 0), None, generator)


def test_mode_1_of_a_level_above_proposes_in_the_terms_of_the_planner_below() -> None:
    class ThreeLevels(TwoLevels):
        depth = 3

        def above(self, number: int) -> Far:
            far = Far(self, 2)
            if number == 3:
                far.reach = lambda s, wanted: (wanted - s)[:, None].expand(-1, 2, -1)
            far.white = lambda actions: actions + 100  # type: ignore[method-assign]
            return far

    class Noting(Reactive):
        def plan(self, s: Tensor, world_model: Any, *rest: Any) -> Any:
            noted.append(rest[2])
            return super().plan(s, world_model, *rest)

    noted: list[Tensor] = []
    low = CEM(samples=8, iterations=1, elites=2, horizon=3, **SPACE)  # type: ignore[arg-type]
    of = HierarchicalPlanner({"level1": low, "level2": Noting(3, 1.0), "level3": low}, GoalEnergy, SubgoalEnergy)
    start = torch.zeros(1, 2)
    of.plan(start, ThreeLevels(), GoalEnergy(), Modulation(torch.ones(1, 2)), None, Generator().manual_seed(0))
    assert torch.allclose(noted[0], (of.subgoals[1] - start)[:, None].expand(-1, 2, -1) + 100)


def test_a_subgoal_is_held_until_it_is_reached() -> None:
    start, goal = torch.tensor([[-5.0, 4.0]]), torch.tensor([[5.0, 4.0]])
    of, generator, modulation, model = planner(hold=4), Generator().manual_seed(0), Modulation(goal), TwoLevels()
    first = of.plan(start, model, GoalEnergy(), modulation, None, generator)
    (subgoal,) = of.subgoals
    again = of.plan(start, model, GoalEnergy(), modulation, None, generator)
    assert torch.equal(of.subgoals[0], subgoal)
    assert again.evaluations == 32 * 3 * 4 < first.evaluations
    of.plan(subgoal, model, GoalEnergy(), modulation, None, generator)
    assert (of.subgoals[0] - goal).norm() < (subgoal - goal).norm()  # the next one of the same plan
    of.plan(subgoal, model, GoalEnergy(), Modulation(start), None, generator)
    assert (of.subgoals[0] - start).norm() < (subgoal - start).norm()  # another goal: another plan


class Counting:
    """A planner that says how often it was asked, and for what."""

    def __init__(self, of: CEM) -> None:
        self.of, self.horizon, self.action_bound = of, of.horizon, of.action_bound
        self.costs: list[Any] = []

    def plan(self, s: Tensor, world_model: Any, cost: Any, modulation: Modulation, start: Any, generator: Any) -> Any:
        self.costs.append((cost, modulation))
        return self.of.plan(s, world_model, cost, modulation, start, generator)


def test_each_level_plans_once_for_some_plans_of_the_level_below() -> None:
    class ThreeLevels(TwoLevels):
        depth = 3

        def above(self, number: int) -> Far:
            return Far(self, 2)

    names = ("level1", "level2", "level3")
    counting = {name: Counting(CEM(samples=8, iterations=1, elites=2, horizon=3, **SPACE)) for name in names}  # type: ignore[arg-type]
    of = HierarchicalPlanner(counting, GoalEnergy, SubgoalEnergy, hold=2)
    model, modulation = ThreeLevels(), Modulation(torch.ones(1, 2))
    for _ in range(8):
        of.plan(torch.zeros(1, 2), model, GoalEnergy(), modulation, None, Generator().manual_seed(0))
    assert [len(counting[name].costs) for name in names] == [8, 4, 2]


def test_refinement_makes_levels_agree() -> None:
    """a2 = argmin sum C(s2) + |s2[1] - s[n]|^2: where level 2 asks for too much, it asks for what can be reached."""

    class Slow(TwoLevels):
        def above(self, number: int) -> Far:
            return Far(self, 8)  # level 2 believes in twice the speed of level 1

    def subgoal(refinements: int) -> tuple[float, int, int]:
        of, model = planner(refinements=refinements, agreement=50.0), Slow()
        start, goal = torch.tensor([[-5.0, 4.0]]), torch.tensor([[5.0, 4.0]])
        plan = of.plan(start, model, GoalEnergy(), Modulation(goal), None, Generator().manual_seed(0))
        return float((of.subgoals[0] - start).norm()), plan.evaluations, model.steps

    alone, spent, _ = subgoal(0)
    agreed, more, made = subgoal(2)
    assert alone > 5
    assert agreed < 4.5  # in four steps level 1 comes 4 far
    assert more == made == 3 * spent


@pytest.mark.parametrize("judged", [1, 2])
def test_the_agents_own_cost_is_that_of_one_level(judged: int) -> None:
    """C(s2) at the top, C(s; s2[1]) + C(s) below: here what is judged is to stay below y = 0."""

    class Keen:
        def __call__(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
            energy = 100 * states[..., 1].clamp_min(0)
            return energy + GoalEnergy()(states, actions, modulation) if judged == 2 else energy

    start, goal = torch.tensor([[-3.0, -1.0]]), torch.tensor([[3.0, 2.0]])
    of, generator, modulation, s = planner(judged=judged), Generator().manual_seed(0), Modulation(goal), start
    for _ in range(8):
        s = of.plan(s, TwoLevels(), Keen(), modulation, None, generator).states[:, 1]
    assert float(s[0, 0]) > 2
    assert float(s[0, 1]) < 0.3
    assert (float(of.subgoals[0][0, 1]) < 0.3) is (judged == 2)


def test_planners_that_do_not_fit_are_refused() -> None:
    low = CEM(samples=4, iterations=1, elites=2, horizon=4, **SPACE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has \['level1'\]: give one for each level, level1, level2"):
        HierarchicalPlanner({"level1": low}, GoalEnergy, SubgoalEnergy)
    with pytest.raises(ValueError, match="level1 lacks its metric"):
        HierarchicalPlanner({"level1": partial(CEM), "level2": low}, GoalEnergy, SubgoalEnergy)
    with pytest.raises(ValueError, match=r"refinements=-1, planner\.judged=None: give 0 or more"):
        planner(refinements=-1)
    with pytest.raises(ValueError, match=r"judged=3: give 0 or more, and one of the 2 levels"):
        planner(judged=3)
    explorer = partial(
        Explorer, rounds=1, origins=1, walks=1, walk_steps=4, nodes=2, branches=2, branch_steps=1, **SPACE
    )
    high = GraphSearch(low, explorer, None)
    with pytest.raises(ValueError, match="planner of level 2 minimises a cost of its own"):
        HierarchicalPlanner({"level1": low, "level2": high}, GoalEnergy, SubgoalEnergy, refinements=1).plan(
            torch.zeros(1, 2), TwoLevels(), GoalEnergy(), Modulation(torch.zeros(1, 2))
        )
    with pytest.raises(ValueError, match="planners for 2 levels, but the world model has 1"):
        planner().plan(torch.zeros(1, 2), Plane(), GoalEnergy(), Modulation(torch.zeros(1, 2)))  # type: ignore[arg-type]
