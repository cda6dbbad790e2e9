"""A recurrent predictor: the state is the hidden state of a GRU.

Legend: T time, D state, A action.
"""

from __future__ import annotations

from torch import Tensor, nn

from lightning_jepa.world_model.markov import last


class RecurrentPredictor(nn.Module):
    """s[t+1] = LayerNorm(GRU(input = a[t], hidden = s[t])) (paper section 4.4; the cell of EB-JEPA's world model).

    Its states have the scale of a LayerNorm, so the encoder should end in one, too.

    Args:
        state_size: D.
        action_size: A.
    """

    history = 1

    def __init__(self, state_size: int, action_size: int) -> None:
        super().__init__()
        self.state_size, self.action_size = state_size, action_size
        self.cell = nn.GRUCell(action_size, state_size)
        self.norm = nn.LayerNorm(state_size)

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        """[..., T, D], [..., T, A] -> [..., D]."""
        s, a = last(s, a)
        following: Tensor = self.norm(self.cell(a.reshape(-1, self.action_size), s.reshape(-1, self.state_size)))
        return following.view(s.shape)
