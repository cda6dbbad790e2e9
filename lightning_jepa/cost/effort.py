"""The cost of moving.

Legend: B episodes, S candidates, H horizon, D state, A action.
"""

from __future__ import annotations

from torch import Tensor, nn

from lightning_jepa.types import Modulation


class Effort(nn.Module):
    """IC(a) = |a|^2 / bound^2: 1 for an action of the largest norm.

    Args:
        action_bound: largest norm of an action.

    Raises:
        ValueError: if it is not above 0.
    """

    def __init__(self, action_bound: float) -> None:
        super().__init__()
        if not action_bound > 0:
            raise ValueError(f"action_bound={action_bound}: give the largest norm of an action, above 0")
        self.action_bound = action_bound

    def forward(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        """Actions [B, S, H, A] -> [B, S, H]."""
        return actions.square().sum(-1) / self.action_bound**2
