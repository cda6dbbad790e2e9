"""The space in which distances between states are measured.

Legend: D state, E metric space.
"""

from __future__ import annotations

from torch import Tensor, nn


class MetricSpace(nn.Module):
    """v = metric(s), an MLP with LayerNorm between its layers.

    A map of local features is a good state for prediction and a bad one for distances: as soon as two agents' spots no
    longer overlap, they are equally far apart. This is where the shape of the whole layout comes in.

    Args:
        state_size: D.
        size: E.
        hidden: width of both hidden layers.
    """

    def __init__(self, state_size: int, size: int = 32, hidden: int = 256) -> None:
        super().__init__()
        self.state_size = state_size
        self.layers = nn.Sequential(
            nn.LayerNorm(state_size),
            nn.Linear(state_size, hidden),
            nn.LayerNorm(hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
            nn.SiLU(),
            nn.Linear(hidden, size),
        )

    def forward(self, states: Tensor) -> Tensor:
        """[..., D] -> [..., E].

        Raises:
            ValueError: if the states are of another size.
        """
        if states.shape[-1] != self.state_size:
            raise ValueError(
                f"states of {states.shape[-1]} numbers, the metric was built for {self.state_size}: set "
                f"geometry.metric.state_size to {states.shape[-1]}"
            )
        v: Tensor = self.layers(states)
        return v
