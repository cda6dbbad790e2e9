"""What a Gymnasium space is made of, in the order in which `gymnasium.spaces.flatten` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import getitem
from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Dict, Space, Tuple, flatdim, flatten
from numpy.typing import NDArray

from data_pipelines.pictures import is_picture


class Part(NamedTuple):
    """A space that is no Dict or Tuple, and the keys that lead to it."""

    keys: tuple[Any, ...]
    space: Space[Any]

    @property
    def name(self) -> str:
        """The keys in a word."""
        return "_".join(map(str, self.keys))

    def columns(self, otherwise: str) -> tuple[str, ...]:
        """A name for each of its numbers; `otherwise`, where no keys lead to it."""
        return tuple(f"{self.name or otherwise}_{number}" for number in range(flatdim(self.space)))

    def of(self, data: Any) -> Any:
        """What belongs to it."""
        return reduce(getitem, self.keys, data)

    def flat(self, one: Any) -> NDArray[np.float32]:
        """One of its elements as numbers."""
        return np.asarray(flatten(self.space, one), np.float32).ravel()


def parts(space: Space[Any], keys: tuple[Any, ...] = ()) -> Iterator[Part]:
    """The parts of a space."""
    if isinstance(space, Dict | Tuple):
        inner = space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces)
        for key, one in inner:
            yield from parts(one, (*keys, key))
    else:
        yield Part(keys, space)


def picture_parts(space: Space[Any]) -> dict[str, Part]:
    """The parts that are pictures, by their names."""
    return {part.name: part for part in parts(space) if is_picture(part.space)}


def number_parts(space: Space[Any]) -> list[Part]:
    """The parts that are numbers, but no pictures."""
    return [part for part in parts(space) if part.space.is_np_flattenable and not is_picture(part.space)]
