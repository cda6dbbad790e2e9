"""A convolutional encoder whose state is a map, and the head that turns a map into one vector.

Legend: N pictures, B batch, T time, C H W image, D state, c h w a state seen as a map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_jepa.perception.pictures import PictureEncoder
from lightning_jepa.perception.standardise import Standardise


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each location of a map [N, c, h, w]."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, c, h, w] -> [N, c, h, w]."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class ConvEncoder(PictureEncoder):
    """Strided convolutions to a map of local features: s = Enc(x) of shape (channels, h, w).

    Each strided layer halves the picture until its side is at most `largest_side`: with 9, 33 -> 17 -> 9 and
    65 -> 33 -> 17 -> 9. A spatial state lets a convolutional predictor learn local physics, which carries over to
    layouts that were never seen.
    No batch statistics inside: they would tie together the candidates of a plan.

    Args:
        image_channels: C.
        resolution: H and W.
        widths: channels of the strided layers; where more halvings are needed than widths are given, the first is
            repeated.
        channels: c, channels of the state.
        normalise: end with a LayerNorm over the channels of each location, which bounds the scale of energies.
        largest_side: of the state's map; small things need a large one.

    Raises:
        ValueError: if more widths are given than the picture can be halved.
    """

    def __init__(
        self,
        image_channels: int = 2,
        resolution: int = 33,
        widths: Sequence[int] = (16, 32),
        channels: int = 16,
        normalise: bool = False,
        largest_side: int = 9,
    ) -> None:
        side, halvings = resolution, 0
        while side > largest_side:
            side, halvings = (side + 1) // 2, halvings + 1
        if not 1 <= len(widths) <= halvings:
            raise ValueError(
                f"{len(widths)} widths for pictures of {resolution} pixels, which are halved {halvings} times until "
                f"their side is at most {largest_side}: give 1 to {halvings} perception.widths"
            )
        super().__init__(image_channels, resolution, (channels, side, side))
        layers: list[nn.Module] = []
        before = image_channels
        for width in [widths[0]] * (halvings - len(widths)) + list(widths):
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), nn.ReLU()]
            before = width
        layers.append(nn.Conv2d(before, channels, 3, padding=1))
        if normalise:
            layers.append(ChannelNorm(channels))
        # Convolutions over few channels are faster on CPU and with tensor cores when channels lie side by side.
        self.network = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs


class VectorEncoder(nn.Module):
    """The map of another encoder flattened into one vector: s = LayerNorm(W Enc(x)).

    The LayerNorm bounds the scale of the state, so that squared distances are comparable between states.

    Args:
        encoder: an encoder whose state is a map.
        state_size: D.
    """

    def __init__(self, encoder: PictureEncoder, state_size: int = 128) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(encoder.state_size, state_size), nn.LayerNorm(state_size))
        self.state_size = state_size
        self.state_shape = (state_size,)

    @property
    def standardise(self) -> Standardise:
        """The statistics of the pictures."""
        return self.encoder.standardise

    def forward(self, observations: Tensor) -> Tensor:
        """uint8 [B, T, C, H, W] -> s [B, T, D]."""
        states: Tensor = self.head(self.encoder(observations))
        return states
