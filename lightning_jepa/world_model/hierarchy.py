"""H-JEPA: world models on top of each other, each with longer steps and less detail than the one below.

Legend: B batch, T time, C H W image, D state of level 1, D' of a level above, P body, A action, M macro-action,
S candidates, H horizon, n steps of level 1 in one of a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_jepa.world_model.jepa import JEPA
from lightning_jepa.world_model.level import Level, Whitened


class SeenFrom:
    """What a level sees in pictures, and imagines: a world model (protocol `WorldModel`) of long steps.

    Args:
        hierarchy: of which it is one.
        number: which level above the first.
    """

    def __init__(self, hierarchy: HierarchicalJEPA, number: int) -> None:
        self.hierarchy, self.number = hierarchy, number
        self.level = hierarchy.above(number)
        self.metric = self.level.metric

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        """uint8 [B, T, C, H, W] and what is felt [B, T, P] -> s2 [B, T, D']."""
        return self.hierarchy.lift(self.hierarchy.encode(observations, body), self.number)

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        """From s2 [B, D'] by white macro-actions [B, S, H, M]: [B, S, H, D']."""
        return self.level.rollout(s, actions)


class HierarchicalJEPA(nn.Module):
    """A JEPA and the levels above it (paper section 4.6, Fig. 15).

    As a world model it is its first level: it perceives and imagines step by step, so that all that works with a JEPA
    works with it. Levels are numbered from 1.

    Args:
        base: level 1.
        levels: level 2 and so on, the lowest first.

    Raises:
        ValueError: if a level stands for other actions, or looks at other states, than those of the level below.
    """

    def __init__(self, base: JEPA, levels: Sequence[Level]) -> None:
        super().__init__()
        below, size = base.action_size, base.external_size
        for number, level in enumerate(levels, 2):
            if level.below_size != size:
                raise ValueError(
                    f"level {number} was made for states of {level.below_size} numbers, those of level {number - 1} "
                    f"have {size}: give its encoder the shape of that level's states, or another checkpoint below"
                )
            size = level.jepa.state_size
            if level.macro.below_size != below:
                raise ValueError(
                    f"level {number} stands for actions of {level.macro.below_size} numbers, those of level "
                    f"{number - 1} have {below}: set its macro.action_size to that"
                )
            below = level.macro.size
        self.base, self.levels = base, nn.ModuleList(levels)

    @property
    def depth(self) -> int:
        """How many levels there are."""
        return 1 + len(self.levels)

    @property
    def state_size(self) -> int:
        """D."""
        return self.base.state_size

    @property
    def external_size(self) -> int:
        """Numbers of the external state, which come first."""
        return self.base.external_size

    @property
    def action_size(self) -> int:
        """A."""
        return self.base.action_size

    @property
    def action_scale(self) -> float:
        """Of level 1's actions."""
        return self.base.action_scale

    @property
    def above_base(self) -> list[Level]:
        """The levels above the first, the lowest first."""
        return [self.level(number) for number in range(2, self.depth + 1)]

    def level(self, number: int) -> Level:
        """Level 2 or one above.

        Raises:
            ValueError: if there is none.
        """
        if not 2 <= number <= self.depth:
            raise ValueError(f"level {number}: this hierarchy has the levels 1 to {self.depth}; train another on top")
        found = self.levels[number - 2]
        assert isinstance(found, Level)
        return found

    def above(self, number: int) -> Whitened:
        """A level to plan with, whose actions are white where they are what was done."""
        return Whitened(self.level(number))

    def seen(self, number: int) -> SeenFrom:
        """A level, or the first, as a world model of pictures."""
        return SeenFrom(self, number)

    def stride(self, number: int) -> int:
        """How many steps of level 1 are one of a level: n."""
        return math.prod(self.level(above).steps for above in range(2, number + 1))

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        """uint8 [B, T, C, H, W] and what is felt [B, T, P] -> s [B, T, D] of level 1."""
        return self.base.encode(observations, body)

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        """Level 1: from s [B, D] by S candidates [B, S, H, A]: [B, S, H, D]."""
        return self.base.rollout(s, actions)

    def outcomes(self, s: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Level 1: what a step may lead to, [N, D], [N, A] -> [N, M, D] and chances [N, M]."""
        return self.base.outcomes(s, actions)

    def lift(self, states: Tensor, number: int) -> Tensor:
        """Successive states of level 1, [B, T, D] -> those of a level [B, T, D']."""
        for above in range(2, number + 1):
            states = self.level(above).lift(states)
        return states

    def chunks(self, actions: Tensor, number: int) -> Tensor:
        """Blocks of n actions [..., n, A] -> for each the actions of the level below that a level's macro stands for.

        Raises:
            ValueError: if the blocks are not as long as a step of the level.
        """
        if actions.shape[-2] != self.stride(number):
            raise ValueError(
                f"blocks of {actions.shape[-2]} actions, a step of level {number} has {self.stride(number)}: set the "
                "stride in data.levels to that"
            )
        below = actions.unflatten(-2, (self.level(number).steps, -1))
        return below[..., 0, :] if number == 2 else self.macros(below, number - 1)

    def macros(self, actions: Tensor, number: int) -> Tensor:
        """Blocks of n actions [..., n, A] -> the macro-action of a level that stands for each, [..., M]."""
        macro: Tensor = self.level(number).macro(self.chunks(actions, number))
        return macro

    def predicted(self, s: Tensor, actions: Tensor, number: int) -> Tensor:
        """What a level imagines, by what is known to be done below: from s [B, D] by actions [B, H n, A]: [B, H, D'].

        Raises:
            ValueError: if the actions cannot be cut into steps of the level.
        """
        if number == 1:
            return self.base.predict(s, actions)
        stride = self.stride(number)
        if actions.shape[1] % stride:
            raise ValueError(
                f"{actions.shape[1]} actions: a step of level {number} has {stride}; give a multiple of that"
            )
        here = self.lift(s[:, None], number)[:, 0]
        return self.level(number).jepa.predict(here, self.macros(actions.unflatten(1, (-1, stride)), number))
