"""Features of a state that is a map: what is where counts wherever it is (for the critic, paper section 3.3).

Legend: D external state, P body, C channels, h w map, E features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn


class SpatialFeatures(nn.Module):
    """Two convolutions over the state's map, then an MLP over all of it.

    A critic with these ranks states better than one whose first layer sees the map as one vector: what a wall or a
    hazard means is learned once for all places (docs/critic.md, "What was tried").

    Args:
        state_shape: C, h and w, with D = C h w.
        size: E.
        channels: of the convolutions.
        hidden: width of the hidden layer.
        body_size: P, the last numbers of a state, which are left out.

    Raises:
        ValueError: if the shape is not that of a map.
    """

    def __init__(
        self, state_shape: Sequence[int], size: int, channels: int = 32, hidden: int = 256, body_size: int = 0
    ) -> None:
        super().__init__()
        if len(state_shape) != 3 or min(state_shape) < 1:
            raise ValueError(f"state_shape={list(state_shape)}: give channels, height and width of the state's map")
        self.shape, self.state_size, self.body_size = tuple(state_shape), math.prod(state_shape), body_size
        places = self.shape[1] * self.shape[2]
        self.layers = nn.Sequential(
            nn.Conv2d(self.shape[0], channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(channels * places, hidden),
            nn.ReLU(),
            nn.Linear(hidden, size),
        )

    def forward(self, states: Tensor) -> Tensor:
        """[..., D + P] -> [..., E].

        Raises:
            ValueError: if the states are of another size.
        """
        if states.shape[-1] != self.state_size + self.body_size:
            raise ValueError(
                f"states of {states.shape[-1]} numbers, these features were built for a map of {self.shape} and a body "
                f"of {self.body_size}: set critic.network.features.state_shape and critic.body_size to the model's"
            )
        maps = states[..., : self.state_size].reshape(-1, *self.shape)
        features: Tensor = self.layers(maps)
        return features.view(*states.shape[:-1], -1)
