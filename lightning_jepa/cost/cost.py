"""The total cost: intrinsic cost and critics, each term with its weight (paper section 3.2).

Legend: B episodes, S candidates, H horizon, D state, A action, K intrinsic terms, J critics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_jepa.cost.critic import Critic
from lightning_jepa.cost.intrinsic import IntrinsicCost
from lightning_jepa.types import Modulation


class Cost(nn.Module):
    """C = sum_i u_i IC_i(s) + sum_j v_j TC_j(s), over a plan: discounted, the critics judging where it ends.

        sum_{h=1..H} gamma^(h-1) u . IC(s[h], a[h-1]) + gamma^H v . TC(s[H])

    The sum over the horizon is the planner's; the last step's energy holds the critics' part. Weights are the
    modulation's: u [B, K] and v [B, J], 1 each where it has none.

    Args:
        intrinsic: IC.
        critics: name -> TC_j, modules from states [B, S, D] and a modulation to [B, S]; none for planners that see far
            enough.
        discount: gamma; the critics' own, where there are any.

    Raises:
        ValueError: if the discount is not in (0, 1], or a critic was trained for another intrinsic cost.
    """

    def __init__(
        self, intrinsic: IntrinsicCost, critics: Mapping[str, nn.Module] | None = None, discount: float = 1.0
    ) -> None:
        super().__init__()
        if not 0 < discount <= 1:
            raise ValueError(f"discount={discount}: give a number above 0, at most 1")
        self.intrinsic, self.discount = intrinsic, discount
        self.critics = nn.ModuleDict(dict(critics or {}))
        for critic in self.critics.values():
            if isinstance(critic, Critic):
                critic.check(intrinsic.fingerprint)

    def forward(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, H, D], [B, S, H, A] -> [B, S, H].

        Raises:
            ValueError: if the weights don't fit, or one is negative.
        """
        u, v = self.weights(modulation, states)
        horizon = states.shape[2]
        gamma = self.discount ** torch.arange(horizon, device=states.device)
        # products and sums, as a matrix product would be rounded to half precision where that is allowed
        energy = (self.intrinsic(states, actions, modulation).float() * u[:, None, None]).sum(-1) * gamma
        if len(self.critics):
            judged = torch.stack([critic(states[:, :, -1], modulation) for critic in self.critics.values()], -1)
            ahead = self.discount**horizon * (judged.float() * v[:, None]).sum(-1)
            energy = torch.cat([energy[..., :-1], energy[..., -1:] + ahead[..., None]], -1)
        return energy

    def terms(self, state: Tensor, action: Tensor, modulation: Modulation) -> dict[str, Tensor]:
        """Each term's energy, unweighted, of states [B, D] that actions [B, A] led to: name -> [B]."""
        intrinsic = self.intrinsic(state[:, None, None], action[:, None, None], modulation)[:, 0, 0]
        judged = {name: critic(state[:, None], modulation)[:, 0] for name, critic in self.critics.items()}
        return {**dict(zip(self.intrinsic.names, intrinsic.unbind(-1), strict=True)), **judged}

    def weights(self, modulation: Modulation, like: Tensor) -> tuple[Tensor, Tensor]:
        """U [B, K] and v [B, J].

        Raises:
            ValueError: if one is of another shape, negative or not finite.
        """
        named = {"u": tuple(self.intrinsic.names), "v": tuple(self.critics)}
        return self._one("u", modulation.u, named["u"], like), self._one("v", modulation.v, named["v"], like)

    def _one(self, name: str, given: Any, terms: tuple[str, ...], like: Tensor) -> Tensor:
        shape = (len(like), len(terms))
        if given is None:
            return torch.ones(shape, device=like.device)
        if given.shape != shape or not (given >= 0).all() or not given.isfinite().all():
            raise ValueError(
                f"the weights {name} have shape {tuple(given.shape)} and are at least {given.amin().item():g}: give "
                f"{list(shape)} finite numbers of 0 or more, for each episode one for each of {list(terms)}"
            )
        weights: Tensor = given.to(like.device, torch.float32)
        return weights
