"""The energy of not being at the goal.

Legend: B episodes, S candidates, H horizon, A action, D state, M numbers of the metric space.
"""

from __future__ import annotations

from torch import Tensor, nn

from lightning_jepa.types import Modulation


class GoalEnergy(nn.Module):
    """C(s) = mean_m (f(s) - f(goal))_m ** 2: how far a state is from the goal (paper section 3.2).

    Args:
        metric: f, from states [..., D] to a space [..., M] whose distances say what to approach; without one, the
            distance is taken between states.
    """

    def __init__(self, metric: nn.Module | None = None) -> None:
        super().__init__()
        self.metric = metric if metric is not None else nn.Identity()

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
        return (self.metric(states) - self.metric(goal)[:, None, None]).square().mean(-1)
