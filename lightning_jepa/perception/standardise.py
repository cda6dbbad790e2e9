"""From bytes to numbers of mean 0 and standard deviation 1 in every channel.

Legend: N pictures, C H W image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """(x / 255 - mean) / std for each channel. A small agent is a speck that an encoder hardly sees without this.

    The statistics are those of the data: `set` takes them from the data's manifest when training starts, and they
    travel with the weights. Until then the module only divides by 255.

    Args:
        channels: C.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def set(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        """Take over the statistics of the data, in units of x / 255.

        A channel that never changes has std 0 and is only centred.

        Raises:
            ValueError: if there is not one finite mean and one finite std >= 0 for each channel.
        """
        for name, values in (("mean", mean), ("std", std)):
            given = torch.as_tensor(values, dtype=self.mean.dtype, device=self.mean.device)
            if given.shape != self.mean.shape:
                raise ValueError(
                    f"{name} of shape {tuple(given.shape)} for an encoder of {len(self.mean)} image channels: "
                    f"set perception.image_channels to the number of channels in the data"
                )
            if not given.isfinite().all() or (name == "std" and (given < 0).any()):
                raise ValueError(f"{name}={given.tolist()} must be finite (and std >= 0): collect the data again")
            getattr(self, name).copy_(given)
        self.std.masked_fill_(self.std < 1e-6, 1.0)

    def forward(self, pictures: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float [N, C, H, W]."""
        scale = (255 * self.std).reciprocal()
        shift = -self.mean / self.std
        return pictures.to(scale.dtype) * scale[:, None, None] + shift[:, None, None]
