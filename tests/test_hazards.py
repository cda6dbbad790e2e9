"""A world with a body: what hurts, tires and feeds, and a world model that predicts what is felt."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, nn

from data_pipelines.worlds.hazards import HazardRooms, HazardTwoRooms
from lightning_jepa.world_model.convolutional import ConvPredictor
from lightning_jepa.world_model.ego import EgoModel
from lightning_jepa.world_model.jepa import JEPA

LAYOUTS = HazardTwoRooms()
IDS = LAYOUTS.ids("train")[::97]


def test_hazards_and_chargers_lie_in_the_rooms_and_apart() -> None:
    boxes = torch.cat([LAYOUTS.hazards(IDS), LAYOUTS.chargers(IDS)], 1)
    rooms = LAYOUTS.rooms(IDS)
    inside = (boxes[:, :, None, :2] >= rooms[:, None, :, :2] - 1e-4) & (
        boxes[:, :, None, 2:] <= rooms[:, None, :, 2:] + 1e-4
    )
    assert inside.all(-1).any(-1).all()
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    overlap = (high > low).all(-1) & ~torch.eye(4, dtype=torch.bool)
    assert not overlap.any()
    assert torch.equal(LAYOUTS.hazards(IDS), HazardTwoRooms().hazards(IDS))
    assert not set(LAYOUTS.ids("train").tolist()) & set(LAYOUTS.ids("held_out").tolist())


def test_it_hurts_in_hazards_and_only_there() -> None:
    world = HazardRooms(LAYOUTS)
    centre = LAYOUTS.hazards(IDS)[:, 0].unflatten(-1, (2, 2)).mean(1)
    assert world.reset(IDS, centre).shape == (len(IDS), 4, 33, 33)
    torch.testing.assert_close(world.body(), torch.ones(len(IDS), 2))
    edge = torch.stack([LAYOUTS.hazards(IDS)[:, 0, 2], centre[:, 1]], -1)
    world.reset(IDS, edge)
    torch.testing.assert_close(world.body()[:, 1], torch.full((len(IDS),), 0.5))
    world.reset(IDS, LAYOUTS.chargers(IDS)[:, 0].unflatten(-1, (2, 2)).mean(1))
    assert (world.body()[:, 1] == 0).all()


def test_moving_tires_and_chargers_feed() -> None:
    world = HazardRooms(LAYOUTS, drain=0.01, toil=0.1, charge=0.3)
    place = LAYOUTS.hazards(IDS)[:, 0].unflatten(-1, (2, 2)).mean(1)
    world.reset(IDS, torch.cat([place, torch.full((len(IDS), 1), 0.5)], -1))
    world.step(torch.tensor([[2.45, 0.0]]).expand(len(IDS), -1))
    torch.testing.assert_close(world.body()[:, 0], torch.full((len(IDS),), 0.39))
    charger = LAYOUTS.chargers(IDS)[:, 0].unflatten(-1, (2, 2)).mean(1)
    world.reset(IDS, torch.cat([charger, torch.full((len(IDS), 1), 0.5)], -1))
    world.step(torch.zeros(len(IDS), 2))
    torch.testing.assert_close(world.body()[:, 0], torch.full((len(IDS),), 0.79))
    starts = world.starts(place, Generator().manual_seed(0))
    assert ((starts[:, 2] >= 0.2) & (starts[:, 2] <= 1)).all()


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="drain=-1"):
        HazardRooms(LAYOUTS, drain=-1)
    with pytest.raises(ValueError, match="variants=0"):
        HazardTwoRooms(0)


class Flat(nn.Module):
    state_size = 18

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return observations.flatten(2).float()


def test_the_body_stays_readable_at_the_end_of_states_and_is_predicted() -> None:
    """s = [external | body], body[t+1] = keep * body[t] + change(s[t+1], body[t], a[t])."""
    torch.manual_seed(0)
    ego = EgoModel((2, 3, 3), 2, 2, hidden=8)
    jepa = JEPA(Flat(), ConvPredictor((2, 3, 3), 2, hidden=4), ego=ego)  # type: ignore[arg-type]
    body = torch.rand(3, 4, 2)
    states = jepa.encode(torch.randint(0, 9, (3, 4, 2, 3, 3), dtype=torch.uint8), body)
    assert torch.equal(states[..., -2:], body)
    actions = torch.randn(3, 3, 2)
    predicted = jepa.predict(states[:, 0], actions)
    felt = body[:, 0]
    for t in range(3):
        felt = ego(predicted[:, t, :18], felt, actions[:, t])
        torch.testing.assert_close(predicted[:, t, 18:], felt)
    error = (predicted - states[:, 1:]).square()[:, None]
    found = jepa.predictions(states, actions, states, 3)[1]["prediction"]
    torch.testing.assert_close(found, error[..., :18].mean(-1))
    felt = ego.along(states[:, 1:, :18], body[:, 0], actions)
    torch.testing.assert_close(felt[:, 1], ego(states[:, 2, :18], felt[:, 0], actions[:, 1]))
    torch.testing.assert_close(jepa.felt(states, actions), (felt - body[:, 1:]).square().mean(-1))
    with pytest.raises(ValueError, match=r"a body of shape \(3, 4, 1\)"):
        jepa.encode(torch.zeros(3, 4, 2, 3, 3, dtype=torch.uint8), body[..., :1])
    with pytest.raises(ValueError, match="body_size=0"):
        EgoModel((2, 3, 3), 2, 0)
