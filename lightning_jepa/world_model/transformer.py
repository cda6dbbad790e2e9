"""A causal transformer predictor over a history of states, conditioned on actions by AdaLN.

Legend: T time, D state, A action, E width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class Block(nn.Module):
    """Causal attention and an MLP, whose inputs are shifted and scaled and whose outputs are gated by the action.

    AdaLN-zero (Peebles and Xie 2023): all gates are zero at first, and the block passes its input on.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """[N, T, E], [N, T, E] -> [N, T, E]."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition).chunk(6, -1)
        x = x + gate_a * self.attend(self.norms[0](x) * (1 + scale_a) + shift_a)
        return x + gate_m * self.mlp(self.norms[1](x) * (1 + scale_m) + shift_m)

    def attend(self, x: Tensor) -> Tensor:
        """Attention to the present and the past, [N, T, E] -> [N, T, E]."""
        q, k, v = self.queries_keys_values(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended: Tensor = self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return attended


class TransformerPredictor(nn.Module):
    """s[t+1] = s[t] + f(s[t-h+1..t], a[t-h+1..t]) (paper section 4.4). It starts as "nothing changes".

    Args:
        state_size: D.
        action_size: A.
        history: h, the number of states it looks back on, itself included.
        width: E, size of a token.
        depth: blocks.
        heads: attention heads in a block.

    Raises:
        ValueError: if the width can't be shared among the heads.
    """

    def __init__(
        self, state_size: int, action_size: int, history: int = 4, width: int = 128, depth: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"world_model.width={width} is not a multiple of world_model.heads={heads}")
        self.state_size, self.action_size, self.history = state_size, action_size, history
        self.tokens = nn.Linear(state_size, width)
        self.condition = nn.Sequential(nn.Linear(action_size, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.times = nn.Parameter(torch.randn(history, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.change = nn.Linear(width, state_size)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        """[..., T, D], [..., T, A] -> [..., D] with T at most h.

        Raises:
            ValueError: if more states are given than it can look back on.
        """
        length = s.shape[-2]
        if length > self.history:
            raise ValueError(f"{length} states for a predictor of history={self.history}: give the last of them")
        leading = torch.broadcast_shapes(s.shape[:-2], a.shape[:-2])
        tokens, condition = self.tokens(s) + self.times[:length], self.condition(a)
        x, condition = (part.expand(*leading, -1, -1).reshape(-1, *part.shape[-2:]) for part in (tokens, condition))
        for block in self.blocks:
            x = block(x, condition)
        return s[..., -1, :] + self.change(self.norm(x[:, -1])).view(*leading, -1)
