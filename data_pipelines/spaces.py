"""What a Gymnasium space is made of, in the order in which `gymnasium.spaces.flatten` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import getitem
from typing import Any, NamedTuple

from gymnasium.spaces import Dict, Space, Tuple, flatdim


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


def parts(space: Space[Any], keys: tuple[Any, ...] = ()) -> Iterator[Part]:
    """The parts of a space."""
    if isinstance(space, Dict | Tuple):
        inner = space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces)
        for key, one in inner:
            yield from parts(one, (*keys, key))
    else:
        yield Part(keys, space)
