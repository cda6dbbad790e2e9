"""Scouts: walks from what is known, then from states among those found that lie far apart."""

from __future__ import annotations

import pytest
import torch
from plane import SPACE, Plane
from torch import Generator, Tensor

from lightning_jepa.actor.planners.scouts import Scouts

KNOWN = torch.tensor([[[-3.0, 0.0], [-4.0, 1.0]], [[-2.0, -2.0], [-5.0, -5.0]]])
NUMBERS = {"origins": 16, "walks": 8, "walk_steps": 8, "kept": 12}


def as_they_are(states: Tensor) -> Tensor:
    return states


def test_scouts_find_what_can_be_reached_and_count_their_steps() -> None:
    scouts, model = Scouts(rounds=4, **NUMBERS, **SPACE), Plane(wall=True)
    found = scouts.spread(KNOWN, model, as_they_are, Generator().manual_seed(0))
    assert torch.equal(found[:, :2], KNOWN)
    assert found.shape == (2, 2 + 4 * 16 * 12, 2)
    assert model.steps == scouts.evaluations
    in_wall = (found[..., 0].abs() < 1) & ((found[..., 1] - 4).abs() > 1)
    assert not in_wall.any()
    assert (found[..., 0] > 2).any(1).all()  # through the door


def test_rounds_begin_where_states_lie_far_apart() -> None:
    """In a space that only knows of y, walks spread along y: one round more leads further up and down."""
    spans = []
    for rounds in (1, 4):
        found = Scouts(rounds=rounds, **NUMBERS, **SPACE).spread(
            KNOWN, Plane(), lambda states: states[..., 1:], Generator().manual_seed(0)
        )
        spans.append(found.amax(1) - found.amin(1))
    assert (spans[1][:, 1] > 1.5 * spans[0][:, 1]).all()


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"kept": 0}, {"colour": 9}, {"action_bound": 0.0}], ids=str)
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"planner.{next(iter(wrong))}=.*expected"):
        Scouts(**{"rounds": 1, **NUMBERS, **SPACE, **wrong})
