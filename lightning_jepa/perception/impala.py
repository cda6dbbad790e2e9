"""The residual encoder of IMPALA (Espeholt et al. 2018), with EB-JEPA's sizes as defaults.

Legend: N pictures, C H W image, D state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_jepa.perception.pictures import PictureEncoder


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x)))) on maps [N, c, h, w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, c, h, w] -> [N, c, h, w]."""
        return x + self.second(torch.relu(self.first(torch.relu(x))))


class ImpalaEncoder(PictureEncoder):
    """Three stacks of convolution, pooling and residual blocks, then one vector with a LayerNorm: s = Enc(x), [D].

    With the defaults: 65 -> 33 -> 17 -> 9 pixels, 32 x 9 x 9 = 2592 -> 512 numbers.

    Args:
        image_channels: C.
        resolution: H and W.
        widths: channels of each stack; each halves the picture.
        blocks: residual blocks in a stack.
        state_size: D.
    """

    def __init__(
        self,
        image_channels: int = 2,
        resolution: int = 65,
        widths: Sequence[int] = (16, 32, 32),
        blocks: int = 2,
        state_size: int = 512,
    ) -> None:
        super().__init__(image_channels, resolution, (state_size,))
        layers: list[nn.Module] = []
        before, side = image_channels, resolution
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1)]
            layers += [Residual(width) for _ in range(blocks)]
            before, side = width, (side + 1) // 2
        layers += [nn.ReLU(), nn.Flatten(), nn.Linear(before * side * side, state_size), nn.LayerNorm(state_size)]
        self.network = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
