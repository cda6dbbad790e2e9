"""What a level asks of the level below: to reach the state that its own plan has next (paper section 4.6).

Legend: B episodes, S candidates, H horizon, A action, D state, D' state of the level above, M metric space.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from lightning_jepa.types import Modulation


class SubgoalEnergy(nn.Module):
    """C(s; s2) = |v(Enc2(s)) - v(s2)|^2 / M: how far a state is from a subgoal, as the level above sees it.

    Args:
        lift: Enc2, from successive states [B, T, D] to [B, T, D'].
        metric: v, from states [..., D'] to [..., M].
    """

    def __init__(self, lift: Callable[[Tensor], Tensor], metric: nn.Module) -> None:
        super().__init__()
        self.lift, self.metric = lift, metric

    def forward(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, H, D] and a goal of the level above, [B, D'] -> [B, S, H]."""
        above = self.lift(states.flatten(0, 1)).unflatten(0, states.shape[:2])
        return (self.metric(above) - self.metric(modulation.goal)[:, None, None]).square().mean(-1)
