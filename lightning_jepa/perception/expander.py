"""The expander v = Exp(s), on which criteria may act in place of the state.

Legend: D state, E expanded.
"""

from __future__ import annotations

from torch import Tensor, nn


class Expander(nn.Module):
    """A few layers from a state to a higher-dimensional v = Exp(s) (paper section 4.5.1).

    Decorrelated components of s can all be functions of one single factor of the world; decorrelating many nonlinear
    functions of s makes its components nearer to independent.

    Args:
        state_size: D (for criteria that treat locations as samples: the channels of a location).
        size: E.
        depth: layers, all but the last of them with LayerNorm and ReLU. LayerNorm, because batch statistics would
            differ between one process and many.

    Raises:
        ValueError: if it does not expand, or has no layer.
    """

    def __init__(self, state_size: int, size: int, depth: int = 3) -> None:
        super().__init__()
        if size < state_size or depth < 1:
            raise ValueError(
                f"an expander from {state_size} to {size} numbers in {depth} layers: size must be at least "
                f"{state_size}, depth at least 1"
            )
        layers: list[nn.Module] = []
        before = state_size
        for _ in range(depth - 1):
            layers += [nn.Linear(before, size), nn.LayerNorm(size), nn.ReLU()]
            before = size
        self.layers = nn.Sequential(*layers, nn.Linear(before, size))

    def forward(self, states: Tensor) -> Tensor:
        """[..., D] -> [..., E]."""
        expanded: Tensor = self.layers(states)
        return expanded
