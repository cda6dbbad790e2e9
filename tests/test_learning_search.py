"""Mode-2 that learns while it acts where its critic is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor, nn

from lightning_jepa.actor.planners.cem import CEM
from lightning_jepa.actor.planners.learning import LearningSearch
from lightning_jepa.protocols import Planner
from lightning_jepa.types import Modulation


class Line(nn.Module):
    """s = x, an action moves it, between 4 and 10."""

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        return observations

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        return (s[:, None, None] + actions.cumsum(2)).clamp(4, 10)


def dead_end(states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
    """One half for each step until the goal is there, at 10; 5 is thought to be nearer to it than all around it."""
    x = states[..., 0]
    expected = torch.where(x < 8, 2 + (x - 5).abs(), 25 - 2.5 * x).clamp_min(0)
    passed = 0.5 * (x < 9.5).float()
    return torch.cat([passed[..., :-1], passed[..., -1:] + expected[..., -1:]], -1)


def always_one(states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
    """A cost that nothing lessens."""
    return torch.ones_like(states[..., 0])


def ends(planner: Planner, moves: int, starts: Tensor) -> Tensor:
    """Where agents are after each move, [B, moves]."""
    s, generator, asked, path = starts, Generator().manual_seed(0), Modulation(torch.full_like(starts, 10.0)), []
    everybody = torch.ones(len(s), dtype=torch.bool)
    for _ in range(moves):
        plan = planner.plan(s, Line(), dead_end, asked, generator=generator)
        if isinstance(planner, LearningSearch):
            planner.followed(s, everybody)
        s = plan.states[:, 0]
        path.append(s[:, 0])
    return torch.stack(path, 1)


def search() -> CEM:
    return CEM(64, 3, 8, 2, 1, 0.5)


def test_a_dead_end_fills_up_until_the_way_out_is_cheaper() -> None:
    """C'(s) = C(s) + max_i r_i exp(-d^2 / 2 width^2), r_i <- haste (C'(plan) - C(s_i))."""
    starts = torch.tensor([[5.0], [4.5]])
    assert (ends(search(), 60, starts)[:, -1] - 5).abs().max() < 0.5
    found = ends(LearningSearch(search(), width=0.5, arrived=0.2), 200, starts)
    assert (found[:, -1] - 10).abs().max() < 0.5
    hasty = ends(LearningSearch(search(), width=0.5, arrived=0.2, haste=3.0), 200, starts)
    out, sooner = ((path > 8).float().argmax(1) for path in (found, hasty))
    assert (sooner < out).all()


def test_at_the_goal_nothing_is_lacking() -> None:
    """C'(goal) = C(goal), whatever was learned beside it: who is there stays."""
    starts = torch.full((2, 1), 10.0)
    planner, asked = LearningSearch(search(), width=0.5, arrived=0.2), Modulation(starts)
    for _ in range(30):
        plan = planner.plan(starts, Line(), always_one, asked, generator=Generator().manual_seed(0))
        planner.followed(starts, torch.ones(2, dtype=torch.bool))
    assert (plan.states[:, -1] - 10).abs().max() < 0.2


def test_what_was_learned_is_forgotten_with_the_task_and_by_whom_it_was_not_followed() -> None:
    planner, s = LearningSearch(search(), width=0.5, arrived=0.2), torch.tensor([[5.0], [5.0]])
    one, other = (Modulation(torch.full_like(s, goal)) for goal in (10.0, 10.0))
    fresh = planner.plan(s, Line(), dead_end, one, generator=Generator().manual_seed(0)).cost
    planner.followed(s, torch.tensor([True, False]))
    again = planner.plan(s, Line(), dead_end, one, generator=Generator().manual_seed(0)).cost
    assert again[0] >= fresh[0]
    assert again[1] == fresh[1]
    forgotten = planner.plan(s, Line(), dead_end, other, generator=Generator().manual_seed(0)).cost
    assert torch.equal(forgotten, fresh)


@pytest.mark.parametrize("number", ["width", "arrived", "haste"])
def test_numbers_are_above_zero(number: str) -> None:
    with pytest.raises(ValueError, match=f"{number}=0"):
        LearningSearch(search(), **{"width": 0.5, "arrived": 0.2, number: 0.0})
