"""The energy of not being at the goal.

Legend: B episodes, S candidates, H horizon, A action, D state, M numbers of the metric space.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_jepa.types import Modulation


class GoalEnergy(nn.Module):
    """How far a state is from the goal (paper section 3.2), in one of two shapes.

        IC(s) = d^2 / M                      without a width
        IC(s) = 1 - exp(-d^2 / 2 width^2)    with one,   d = |f(s) - f(goal)|

    The first slopes everywhere and is for planners that see no further than their horizon. The second is about 1
    wherever the agent is not there yet, so that its sum over time is the time to get there: for a critic to learn.

    Args:
        metric: f, from states [..., D] to a space [..., M] whose distances say what to approach; without one, the
            distance is taken between states.
        width: see above, in the metric's unit; None for the first shape.

    Raises:
        ValueError: if the width is not above 0.
    """

    def __init__(self, metric: nn.Module | None = None, width: float | None = None) -> None:
        super().__init__()
        if width is not None and not width > 0:
            raise ValueError(f"width={width}: give a distance above 0, or null")
        self.metric = metric if metric is not None else nn.Identity()
        self.width = width

    def forward(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, H, D], [B, S, H, A] and the goal [B, D] -> [B, S, H].

        Raises:
            ValueError: if the goal does not fit the states.
        """
        goal = modulation.goal
        if states.dim() != 4 or goal.shape != (states.shape[0], states.shape[-1]):
            raise ValueError(
                f"states {tuple(states.shape)} and goal {tuple(goal.shape)}: expected [B, S, H, D] and [B, D]; "
                "encode one goal for each episode with the encoder of this world model"
            )
        squares = (self.metric(states) - self.metric(goal)[:, None, None]).square()
        return self.at(squares.sum(-1), squares.shape[-1])

    def at(self, squared: Tensor, numbers: int) -> Tensor:
        """IC at squared distances d^2 [...] in a space of M numbers."""
        if self.width is None:
            return squared / numbers
        return 1 - torch.exp(-squared / (2 * self.width**2))
