"""No perception at all: the pixels themselves as a state, for models that predict pixels.

Legend: N pictures, C H W image, c h w the state seen as a map.
"""

from __future__ import annotations

from torch import nn

from lightning_jepa.perception.pictures import PictureEncoder


class PixelEncoder(PictureEncoder):
    """Each square block of pixels as the channels of one place: what predicts such states predicts pixels.

    The control of an encoder that may leave out what can't be predicted; it has no weights, so that nothing collapses.

    Args:
        image_channels: C.
        resolution: H and W.
        block: side of a block, pixels; it divides the resolution.

    Raises:
        ValueError: if it does not.
    """

    def __init__(self, image_channels: int = 1, resolution: int = 64, block: int = 8) -> None:
        if block < 1 or resolution % block:
            raise ValueError(f"perception.block={block} does not divide perception.resolution={resolution}")
        side = resolution // block
        super().__init__(image_channels, resolution, (image_channels * block**2, side, side))
        self.network = nn.PixelUnshuffle(block)
