"""Mode-1: the policy module, from a state straight to an action (paper sections 3.1.1 and 3.1.3).

Legend: B episodes, D state, P body, A action, K intrinsic terms, C components, H horizon, E features.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_jepa.layers import mlp
from lightning_jepa.protocols import WorldModel
from lightning_jepa.types import Modulation


class MixturePolicy(nn.Module):
    """a = A(s, goal, u): the mean of the likeliest of C Gaussians; with one component, deterministic.

    Where plans pass an obstacle on either side, the mean of all leads into it, and the mean of one component does not.

    Args:
        features: from states [..., D] to [..., E]; reads the state and the goal.
        features_size: E.
        action_size: A.
        action_bound: largest norm of an action, which is never exceeded.
        terms: K, weights of the intrinsic cost that it is told.
        body_size: P, last numbers of a state, which the head sees as they are.
        components: C.
        hidden: width of the head.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        features: nn.Module,
        features_size: int,
        action_size: int,
        action_bound: float,
        terms: int,
        body_size: int = 0,
        components: int = 1,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        if min(action_size, components, terms) < 1 or not action_bound > 0:
            raise ValueError(
                f"action_size={action_size}, components={components}, terms={terms}, action_bound={action_bound}: "
                "give counts of at least 1 and a bound above 0"
            )
        self.features, self.body_size, self.terms = features, body_size, terms
        self.action_size, self.action_bound, self.components = action_size, action_bound, components
        outputs = components * (action_size + 2)  # means, a log standard deviation, a logit
        self.head = mlp(2 * features_size + body_size + terms, hidden, outputs)
        self._goal: tuple[Tensor, Tensor] | None = None  # the last goals acted for, and their features

    def forward(self, s: Tensor, modulation: Modulation) -> tuple[Tensor, Tensor, Tensor]:
        """The mixture for s [B, D]: means [B, C, A], log standard deviations [B, C], logits [B, C].

        Raises:
            ValueError: if the weights u are not those of K terms.
        """
        u = modulation.u if modulation.u is not None else s.new_ones(len(s), self.terms)
        if u.shape != (len(s), self.terms):
            raise ValueError(
                f"the weights u have shape {tuple(u.shape)}, this policy was made for {[len(s), self.terms]}: use it "
                "with the intrinsic cost it was distilled under"
            )
        share = u / u.sum(-1, keepdim=True).clamp_min(1e-6)  # only ratios between terms change what is best
        body = s[:, s.shape[1] - self.body_size :]
        found = self.head(torch.cat([self.features(s), self._featured(modulation.goal), body, share], -1))
        found = found.float().unflatten(-1, (self.components, self.action_size + 2))
        direction, log_std, logit = found[..., : self.action_size], found[..., -2], found[..., -1]
        length = direction.norm(dim=-1, keepdim=True)
        means = self.action_bound * direction * (torch.tanh(length) / length.clamp_min(1e-6))
        return means, log_std.clamp(-4, 1), logit

    def train(self, mode: bool = True) -> MixturePolicy:
        """As always; what is known of goals is forgotten, as weights may change."""
        self._goal = None
        return super().train(mode)

    def _featured(self, goal: Tensor) -> Tensor:
        """Features of goals, which stay the same for a whole episode: half of the time of an action."""
        if self.training or torch.is_grad_enabled():
            features: Tensor = self.features(goal)
            return features
        if self._goal is None or self._goal[0] is not goal:
            self._goal = goal, self.features(goal)
        return self._goal[1]

    def act(self, s: Tensor, modulation: Modulation) -> Tensor:
        """See `protocols.Policy`."""
        means, _, logits = self(s, modulation)
        return means[torch.arange(len(s), device=s.device), logits.argmax(-1)]

    def misfit(self, s: Tensor, modulation: Modulation, planned: Tensor) -> Tensor:
        """D(a^, A(s)) for actions that Mode-2 found, [B, A] -> [B]: Huber's, or the likelihood of a mixture.

        In units of the action bound.
        """
        means, log_std, logits = self(s, modulation)
        error = (means - planned[:, None]) / self.action_bound
        if self.components == 1:
            return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=0.2).sum(-1)[:, 0]
        density = -0.5 * (error / log_std.exp()[..., None]).square().sum(-1)
        density = density - self.action_size * (log_std + 0.5 * math.log(2 * math.pi))
        return -torch.logsumexp(logits.log_softmax(-1) + density, -1)

    def propose(self, s: Tensor, world_model: WorldModel, modulation: Modulation, horizon: int) -> Tensor:
        """See `protocols.Policy`: a[t] = A(s~[t]), s~[t+1] = Pred(s~[t], a[t]) (paper section 3.1.3)."""
        actions = []
        for _ in range(horizon):
            actions.append(self.act(s, modulation))
            s = world_model.rollout(s, actions[-1][:, None, None])[:, 0, 0]
        return torch.stack(actions, 1)
