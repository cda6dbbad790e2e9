"""Inverse dynamics: the action must be readable from two successive states.

Legend: B batch, T time, D state, A action, N pairs, c h w a state seen as a map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_jepa.types import Encoded


class VectorInverse(nn.Module):
    """a[t] = f(s[t], s[t+1]) for vectors, an MLP.

    Args:
        state_size: D.
        action_size: A.
        hidden: width of both hidden layers.
    """

    def __init__(self, state_size: int, action_size: int, hidden: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * state_size, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, action_size),
        )

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """[N, D], [N, D] -> [N, A]."""
        actions: Tensor = self.layers(torch.cat([before, after], 1))
        return actions


class SpatialInverse(nn.Module):
    """a[t] = f(s[t], s[t+1]) for maps: local features of motion, the strongest of each over all places, then linear.

    The same motion reads the same anywhere. The maximum rather than the mean, because one small thing moves: on
    Two-Rooms its error falls several times faster, where a mean weighted by learned attention had not started to learn.

    Args:
        state_shape: (c, h, w).
        action_size: A.
        hidden: channels of both hidden layers.

    Raises:
        ValueError: if the state is no map.
    """

    def __init__(self, state_shape: Sequence[int], action_size: int, hidden: int = 32) -> None:
        super().__init__()
        if len(state_shape) != 3:
            raise ValueError(f"state_shape={list(state_shape)}: expected a map [c, h, w]")
        self.map_shape = tuple(state_shape)
        self.features = nn.Sequential(
            nn.Conv2d(2 * self.map_shape[0], hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(),
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
        self.out = nn.Linear(hidden, action_size)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """[N, D], [N, D] -> [N, A]."""
        maps = [s.unflatten(1, self.map_shape) for s in (before, after)]
        actions: Tensor = self.out(self.features(torch.cat(maps, 1)).amax((2, 3)))
        return actions


class InverseDynamics(nn.Module):
    """inverse_dynamics = mean |a[t] - f(s[t], s[t+1])|^2 / A.

    Not in the paper: PLDM's addition. Without it an encoder is content with what never changes, which is the easiest
    to predict, and overlooks the agent; with it, what the agent controls must be in the state (paper section 4.4,
    criteria 1 and 2).

    Args:
        head: f, from states [N, D] and [N, D] to actions [N, A].
        every: look at every so many-th pair of a window. A few teach the same, and the head costs as much as the
            encoder.

    Raises:
        ValueError: if `every` is below 1.
    """

    def __init__(self, head: nn.Module, every: int = 1) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every={every}: give at least 1")
        self.head, self.every = head, every

    def forward(self, batch: Encoded) -> dict[str, Tensor]:
        """The term "inverse_dynamics" of its states and actions.

        Raises:
            ValueError: if there is not one action between each two states, or it is of another size.
        """
        states, actions = batch.states, batch.actions
        before, after = states[:, : -1 : self.every], states[:, 1 :: self.every]
        found: Tensor = self.head(before.flatten(0, 1), after.flatten(0, 1))
        if (*states[:, 1:].shape[:2], found.shape[1]) != actions.shape:
            raise ValueError(
                f"states of shape {tuple(states.shape)} and actions of shape {tuple(actions.shape)}: expected "
                f"[B, T, D] and [B, T - 1, {found.shape[1]}]"
            )
        return {"inverse_dynamics": (found - actions[:, :: self.every].flatten(0, 1)).square().mean()}
