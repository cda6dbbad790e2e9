"""Planning by enumeration: argmin over all a of F(a) = sum_t C(s[t])."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plane import GOALS, STARTS, Plane, plan
from torch import Tensor

from lightning_jepa.actor.planners.exhaustive import Exhaustive
from lightning_jepa.types import Modulation

MOVES = [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]


def energy(s: Tensor, goal: Tensor, sequence: tuple[list[float], ...]) -> Tensor:
    """F of one sequence, written out: C = |s - goal| ** 2 / 2."""
    states = s + torch.tensor(sequence).cumsum(0)
    return (states - goal).square().sum() / 2


@given(start=st.integers(0, 3), horizon=st.integers(1, 4), moves=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_no_sequence_of_its_actions_is_better(start: int, horizon: int, moves: int) -> None:
    found = plan(Exhaustive(MOVES[:moves], horizon), STARTS, GOALS)
    sequences = list(itertools.product(MOVES[:moves], repeat=horizon))
    best = min(energy(STARTS[start], GOALS[start], sequence) for sequence in sequences)
    torch.testing.assert_close(found.cost[start], best)
    torch.testing.assert_close(found.states[start], STARTS[start] + found.actions[start].cumsum(0))
    assert all(action.tolist() in MOVES[:moves] for action in found.actions[start])


def test_all_of_it_is_counted_and_memory_changes_nothing() -> None:
    model = Plane()
    found = plan(Exhaustive(MOVES, 3, memory_mb=0.001), model=model)
    assert found.evaluations == model.steps == 4**3 * 3
    assert torch.equal(found.actions, plan(Exhaustive(MOVES, 3)).actions)
    assert Exhaustive([[1, 0], [3, 4]], 2).action_bound == 5


@pytest.mark.parametrize(
    ("actions", "horizon", "message"),
    [
        (MOVES, 7, "16384 sequences, and planner.most allows 1 to 4096.*shorter planner.horizon"),
        ([], 2, "0 actions over 2 steps"),
        (MOVES, 0, "horizon"),
    ],
)
def test_what_cannot_be_enumerated_is_refused(actions: list[list[float]], horizon: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Exhaustive(actions, horizon)


def test_a_cost_that_is_not_finite_is_refused() -> None:
    def nowhere(states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        return states.sum(-1) / 0

    with pytest.raises(ValueError, match="not finite"):
        plan(Exhaustive(MOVES, 2), cost=nowhere)
