"""What all encoders of pictures share: the check of their input, standardisation, and the shape of a state.

Legend: B batch, T time, C H W image, D state, c h w a state seen as a map.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_jepa.perception.standardise import Standardise


class PictureEncoder(nn.Module):
    """Base of encoders s = Enc(x) that look at one picture at a time. A subclass sets `self.network`.

    Args:
        image_channels: C.
        resolution: H and W.
        state_shape: what the network returns for a picture: (D,) for a vector, (c, h, w) for a map. To everyone
            else a state is one vector [D], a map flattened channel first.
    """

    network: nn.Module

    def __init__(self, image_channels: int, resolution: int, state_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.image_shape = (image_channels, resolution, resolution)
        self.state_shape = state_shape
        self.state_size = math.prod(state_shape)
        self.standardise = Standardise(image_channels)

    def forward(self, observations: Tensor) -> Tensor:
        """uint8 [B, T, C, H, W] -> s [B, T, D].

        Raises:
            ValueError: if the observations are not bytes, or of another shape than the encoder was built for.
        """
        if observations.dtype != torch.uint8:
            raise ValueError(f"observations are {observations.dtype}, expected torch.uint8 (0..255), not yet scaled")
        if observations.dim() != 5 or observations.shape[2:] != self.image_shape:
            raise ValueError(
                f"observations of shape {tuple(observations.shape)}, expected [B, T, C, H, W] with C, H, W = "
                f"{self.image_shape}: set perception.image_channels and perception.resolution to those of the data"
            )
        states: Tensor = self.network(self.standardise(observations.flatten(0, 1)))
        return states.flatten(1).unflatten(0, observations.shape[:2])
