"""A second branch for what is to be predicted (paper section 4.5.1 names BYOL's, which this is).

Legend: B batch, T time, C H W image, D state.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lightning_jepa.layers import follow


class SlowEncoder(nn.Module):
    """s_y = Enc'(y) by a copy of the encoder that follows it and gets no gradient.

    With a decay of 0 the copy is the encoder itself as it was after the last step: a stopped gradient. Neither keeps
    the energy from collapsing for a reason that the paper's criteria name; that they often do is an observation.

    Args:
        encoder: what is followed.
        decay: share of the copy that stays in each step.

    Raises:
        ValueError: if the decay is not at least 0 and below 1.
    """

    def __init__(self, encoder: nn.Module, decay: float) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: give a number of at least 0 and below 1")
        self.decay = decay
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)

    def forward(self, observations: Tensor) -> Tensor:
        """uint8 [B, T, C, H, W] -> s_y [B, T, D]."""
        with torch.no_grad():
            s_y: Tensor = self.encoder(observations)
        return s_y

    def follow(self, encoder: nn.Module) -> None:
        """After each step."""
        follow(self.encoder, encoder, 1 - self.decay)
