"""The space in which distances between states are measured.

Legend: D external state, P body, E metric space.
"""

from __future__ import annotations

from torch import Tensor, nn

from lightning_jepa.layers import mlp


class MetricSpace(nn.Module):
    """v = metric(s), an MLP with LayerNorm between its layers.

    A map of local features is a good state for prediction and a bad one for distances: as soon as two agents' spots no
    longer overlap, they are equally far apart. This is where the shape of the whole layout comes in.

    Args:
        state_size: D.
        size: E.
        hidden: width of both hidden layers.
        body_size: P, the last numbers of a state, which are left out: what is felt is no place.
    """

    def __init__(self, state_size: int, size: int = 32, hidden: int = 256, body_size: int = 0) -> None:
        super().__init__()
        self.state_size, self.body_size = state_size, body_size
        self.layers = nn.Sequential(nn.LayerNorm(state_size), *mlp(state_size, hidden, size))

    def forward(self, states: Tensor) -> Tensor:
        """[..., D + P] -> [..., E].

        Raises:
            ValueError: if the states are of another size.
        """
        if states.shape[-1] != self.state_size + self.body_size:
            raise ValueError(
                f"states of {states.shape[-1]} numbers, the metric was built for {self.state_size} and a body of "
                f"{self.body_size}: set geometry.metric.state_size and body_size to the world model's"
            )
        v: Tensor = self.layers(states[..., : self.state_size])
        return v
