"""Places seen from another side."""

from __future__ import annotations

import pytest
import torch
from torch import Generator

from lightning_jepa.perception.turned import Turned
from lightning_jepa.types import Window


def window(height: int, width: int, count: int = 1) -> Window:
    """Two frames of `count` episodes, all of whose pixels differ."""
    pixels = (
        torch.arange(2 * height * width, dtype=torch.uint8).view(1, 2, 1, height, width).expand(count, -1, -1, -1, -1)
    )
    nothing = torch.zeros(count, 2, 0)
    times, mask = torch.zeros(count, 2, dtype=torch.long), torch.ones(count, dtype=torch.bool)
    return Window(pixels, torch.ones(count, 1, 1, 2), nothing, nothing, nothing, nothing, nothing, nothing, times, mask)


def test_each_episode_is_seen_from_one_of_eight_sides_and_all_its_frames_alike() -> None:
    found = Turned()(window(3, 3, 400), Generator().manual_seed(0))
    first = {tuple(pictures[0].flatten().tolist()) for pictures in found.observations}
    both = {tuple(pictures.flatten().tolist()) for pictures in found.observations}
    assert len(first) == len(both) == 8
    assert all(sorted(pictures) == list(range(9)) for pictures in first)


def test_what_was_done_is_unknown() -> None:
    assert Turned()(window(3, 3), Generator()).actions.isnan().all()


def test_pictures_are_square() -> None:
    with pytest.raises(ValueError, match="3 x 5 can't be turned"):
        Turned()(window(3, 5), Generator())
