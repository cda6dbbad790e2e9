"""Small vision transformers (Dosovitskiy et al. 2021).

Legend: N pictures, C H W image, P patches, E width, D state, c h w a state seen as a map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_jepa.perception.pictures import PictureEncoder


class PatchTransformer(nn.Module):
    """Pictures -> patches -> tokens that have attended to one another.

    Pictures whose side is no multiple of the patch are padded on the right and below with zeros, the mean of the data.
    """

    def __init__(self, image_channels: int, side: int, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"perception.width={width} is not a multiple of perception.heads={heads}")
        self.side, self.patch = side, patch
        self.patches = nn.Conv2d(image_channels, width, patch, stride=patch)
        self.places = nn.Parameter(torch.randn(side * side, width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, pictures: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, P, E]."""
        missing = self.side * self.patch - pictures.shape[-1]
        pictures = nn.functional.pad(pictures, (0, missing, 0, missing))
        tokens = self.patches(pictures).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            tokens = block(tokens)
        normed: Tensor = self.norm(tokens)
        return normed


class Mean(nn.Module):
    """The mean of tokens, [N, P, E] -> [N, E]."""

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, P, E] -> [N, E]."""
        return tokens.mean(1)


class ChannelsFirst(nn.Module):
    """Tokens as a map, [N, P, c] -> [N, c, P]."""

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, P, c] -> [N, c, P]."""
        return tokens.transpose(1, 2)


class ViTEncoder(PictureEncoder):
    """A vision transformer as perception, whose state is one vector: s = LayerNorm(W mean of the tokens).

    Args:
        image_channels: C.
        resolution: H and W.
        patch: pixels along each side of a patch.
        width: E, size of a token.
        depth: transformer blocks.
        heads: attention heads in a block.
        state_size: D.

    Raises:
        ValueError: if the width can't be shared among the heads.
    """

    def __init__(
        self,
        image_channels: int = 2,
        resolution: int = 33,
        patch: int = 4,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
        state_size: int = 128,
    ) -> None:
        super().__init__(image_channels, resolution, (state_size,))
        tokens = PatchTransformer(image_channels, -(-resolution // patch), patch, width, depth, heads)
        self.network = nn.Sequential(tokens, Mean(), nn.Linear(width, state_size), nn.LayerNorm(state_size))


class SpatialViTEncoder(PictureEncoder):
    """A vision transformer as perception, whose state is the map of its tokens, (channels, h, w).

    h = w = resolution / patch, rounded up.

    Args:
        image_channels: C.
        resolution: H and W.
        patch: pixels along each side of a patch.
        width: E, size of a token.
        depth: transformer blocks.
        heads: attention heads in a block.
        channels: c.

    Raises:
        ValueError: if the width can't be shared among the heads.
    """

    def __init__(
        self,
        image_channels: int = 2,
        resolution: int = 33,
        patch: int = 4,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
        channels: int = 16,
    ) -> None:
        side = -(-resolution // patch)
        super().__init__(image_channels, resolution, (channels, side, side))
        tokens = PatchTransformer(image_channels, side, patch, width, depth, heads)
        self.network = nn.Sequential(tokens, nn.Linear(width, channels), ChannelsFirst())
