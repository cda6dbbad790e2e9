"""GoalEnergy: C(s) = mean_m (f(s) - f(goal))_m ** 2."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.types import Modulation

GENERATOR = torch.Generator().manual_seed(0)
STATES, ACTIONS = torch.randn(3, 4, 5, 6, generator=GENERATOR), torch.zeros(3, 4, 5, 2)
GOAL = torch.randn(3, 6, generator=GENERATOR)


def test_is_the_mean_squared_distance_to_the_goal_of_the_same_episode() -> None:
    energy = GoalEnergy()(STATES, ACTIONS, Modulation(GOAL))
    assert energy.shape == (3, 4, 5)
    torch.testing.assert_close(energy[2, 1, 3], (STATES[2, 1, 3] - GOAL[2]).square().mean())


def test_is_zero_at_the_goal_and_above_elsewhere() -> None:
    at_goal = GOAL[:, None, None].expand_as(STATES)
    assert GoalEnergy()(at_goal, ACTIONS, Modulation(GOAL)).eq(0).all()
    assert GoalEnergy()(STATES, ACTIONS, Modulation(GOAL)).gt(0).all()


def test_measures_in_the_space_of_the_metric() -> None:
    metric = nn.Linear(6, 2, bias=False)
    energy = GoalEnergy(metric)(STATES, ACTIONS, Modulation(GOAL))
    difference = STATES - GOAL[:, None, None]
    torch.testing.assert_close(energy, (difference @ metric.weight.T).square().mean(-1))


def test_gradient_points_away_from_the_goal() -> None:
    states = STATES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(GoalEnergy()(states, ACTIONS, Modulation(GOAL)).sum(), states)
    torch.testing.assert_close(gradient, (STATES - GOAL[:, None, None]) * 2 / 6)


@pytest.mark.parametrize("goal", [torch.zeros(2, 6), torch.zeros(3, 5), torch.zeros(6)])
def test_a_goal_of_another_shape_is_refused(goal: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="encode one goal for each episode"):
        GoalEnergy()(STATES, ACTIONS, Modulation(goal))
