"""H-JEPA: s2 = Enc2(s), a2 = Act2(a[0..n-1]), s2[t+n] = Pred2(s2[t], a2) (paper section 4.6)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretraining import stage as pretraining_stage
from stacking import ABOVE, level, stacked
from torch import Generator

from lightning_jepa import checkpoint
from lightning_jepa.actor.planners.cem import CEM
from lightning_jepa.actor.planners.hierarchical import HierarchicalPlanner
from lightning_jepa.actor.planners.scenarios import ScenarioPlanner
from lightning_jepa.actor.reaching import Reaching
from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.cost.subgoal import SubgoalEnergy
from lightning_jepa.perception.conv import ConvEncoder
from lightning_jepa.types import Modulation
from lightning_jepa.world_model.convolutional import ConvPredictor
from lightning_jepa.world_model.hierarchy import HierarchicalJEPA
from lightning_jepa.world_model.jepa import JEPA
from lightning_jepa.world_model.level import Level, MacroAction, MapAbove, Same, Whitened, slow_cosines


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


def test_a_level_begins_as_a_projection_of_each_place() -> None:
    """s2 = W s before training, the rows of W orthonormal."""
    states = torch.randn(3, 2, 4 * 5 * 6)
    above = MapAbove((4, 5, 6), 3, hidden=8)
    weight = above.kept.weight[..., 0, 0]
    torch.testing.assert_close(weight @ weight.T, torch.eye(3), atol=1e-5, rtol=0)
    maps = torch.einsum("ec,btchw->btehw", weight, states.unflatten(2, (4, 5, 6)))
    torch.testing.assert_close(above(states), maps.flatten(2))


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


def test_a_step_of_a_level_leads_where_its_rollout_does() -> None:
    """For planners that branch: macro-actions are white there too; without z there is one outcome."""
    own = level(remembered=400)
    own.remember(torch.randn(300, 3, 2))
    s, w = torch.randn(4, 81), torch.randn(4, 2)
    states, chances = Whitened(own).outcomes(s, w)
    torch.testing.assert_close(states[:, 0], Whitened(own).rollout(s, w[:, None, None])[:, 0, 0])
    assert chances.tolist() == [[1.0]] * 4


def test_a_level_may_have_a_latent_variable() -> None:
    """F(s2, s2') = min over z at a level too: codes that a planner above level 1 can draw, branch over, and rank by."""
    torch.manual_seed(0)
    own = level(codes=3, below=ABOVE)
    torch.nn.init.normal_(own.jepa.predictor.last.weight)  # it starts with "nothing changes"
    own.remember(torch.randn(300, 3, 2))
    white, s = Whitened(own), torch.randn(2, 81)
    w = torch.randn(2, 4, 1, 2)
    assert white.noise == 1
    futures, (states, chances) = white.scenarios(s, w, torch.rand(50, 1, 1)), white.outcomes(s, w[:, 0, 0])
    assert futures.shape == (2, 4, 50, 1, 81)
    assert chances.shape == (2, 3)
    nearest = torch.cdist(futures[:, 0, :, 0], states)  # each scenario is one of the outcomes
    assert nearest.amin(-1).max() < 0.05
    of_each = torch.stack([white.energy(s, w[:, 0], state[:, None]) for state in states.unbind(1)], 1)
    assert of_each.max() < 1e-6  # what some code leads to costs nothing
    assert (white.energy(s, w[:, 0], states.mean(1, keepdim=True)) > of_each.amax(1)).all()
    low, high = (CEM(8, 1, 2, 2, 2, 1.0) for _ in range(2))
    risky = ScenarioPlanner(high, scenarios=5, tail=0.2)
    of = HierarchicalPlanner({"level1": low, "level2": risky}, GoalEnergy, SubgoalEnergy)
    tower = HierarchicalJEPA(JEPA(Same(81), ConvPredictor((1, 9, 9), 2)), [own])
    plan = of.plan(s, tower, GoalEnergy(), Modulation(torch.randn(2, 81)), None, Generator().manual_seed(0))
    assert plan.evaluations == 8 * 2 + 5 * 8 * 2


def test_a_level_that_pools_is_not_planned_with() -> None:
    own = level(pool=2)
    own.remember(torch.randn(300, 3, 2))
    with pytest.raises(ValueError, match="pools the last 2 states .* pool=1"):
        Whitened(own)


def test_macro_actions_begin_as_the_slow_part_of_a_chunk() -> None:
    """a2 = tanh(W chunk) before training: the mean of each component, then 2/n sum_t cos(pi (t + 1/2) / n) a[t]."""
    chunks = torch.randn(5, 6, 2)
    found = MacroAction(6, 2, 4, action_scale=2.0)(chunks)
    wave = torch.cos(torch.pi * (torch.arange(6) + 0.5) / 6)
    slow = [chunks.mean(1), (wave[:, None] * chunks).mean(1) * 2]
    torch.testing.assert_close(found, torch.tanh(torch.cat(slow, -1) / 2.0))
    assert torch.linalg.matrix_rank(slow_cosines(6, 2)) == 12


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
    wide = JEPA(ConvEncoder(widths=[4], channels=4), ConvPredictor((4, 9, 9), 2, hidden=4), action_scale=2.45)
    with pytest.raises(ValueError, match="level 2 was made for states of 162 numbers, those of level 1 have 324"):
        HierarchicalJEPA(wide, [level()])
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
