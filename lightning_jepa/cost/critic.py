"""The trainable critic: what intrinsic cost is still to come (paper section 3.3).

Legend: B batch, S states of each, D state, P body, K intrinsic terms, M members, E features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_jepa.layers import mlp
from lightning_jepa.types import Modulation


class Critic(nn.Module):
    """TC(s; goal, u) = sum_{k>=0} gamma^k u . IC(s[t + k + 1]) as an ensemble of networks expects it.

    Each network expects the sum of each term alone, in units of the most it can be if the term is at most one,
    1 / (1 - gamma), and is told only the ratios of u: twice the weights make twice the cost.

    Args:
        members: of the ensemble, each a `CriticNetwork` for K terms.
        terms: K.
        discount: gamma.
        pessimism: how many standard deviations of the ensemble are added to its mean.

    Raises:
        ValueError: if there are no members or the discount is not in [0, 1).
    """

    signature: Tensor

    def __init__(
        self, members: Sequence[nn.Module], terms: int, discount: float = 0.97, pessimism: float = 0.0
    ) -> None:
        super().__init__()
        if not members or terms < 1:
            raise ValueError(f"{len(members)} members, terms={terms}: a critic needs at least one of each")
        if not 0 <= discount < 1:
            raise ValueError(f"discount={discount}: give 0 or more, below 1")
        self.members, self.terms = nn.ModuleList(members), terms
        # sha256 of the intrinsic cost that it was trained for; it travels with the weights
        self.register_buffer("signature", torch.zeros(32, dtype=torch.uint8))
        self.discount, self.pessimism = discount, pessimism

    def sign(self, fingerprint: str) -> None:
        """From now on this is the critic of the intrinsic cost with this fingerprint."""
        self.signature.copy_(torch.frombuffer(bytearray(bytes.fromhex(fingerprint)), dtype=torch.uint8))

    def check(self, fingerprint: str) -> None:
        """Compare with the intrinsic cost that it was trained for, if it was.

        Raises:
            ValueError: if it was another.
        """
        own = bytes(self.signature.tolist()).hex()
        if int(self.signature.sum()) and own != fingerprint:
            raise ValueError(
                f"the critic was trained for the intrinsic cost {own[:12]}, this one is {fingerprint[:12]}: the "
                "intrinsic cost is immutable; use the one in the critic's checkpoint, or train a critic for this one"
            )

    def judge(self, states: Tensor, goals: Tensor, u: Tensor) -> Tensor:
        """What each member expects, [M, ...], of states [..., S, D] under weights u [..., S or 1, K].

        Goals are [..., S, D], or [..., 1, D] where all S states have the same, which is asked for once.
        """
        share = u / u.sum(-1, keepdim=True).clamp_min(1e-6)
        expected = torch.stack([member(states, goals, share) for member in self.members])
        return (expected.float() * u).sum(-1) / (1 - self.discount)

    def forward(self, states: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, D] -> [B, S]."""
        u = modulation.u
        if u is None:
            u = states.new_ones(len(states), self.terms)
        views = self.judge(states, modulation.goal[:, None], u[:, None])
        mean = views.mean(0)
        return mean if self.pessimism == 0 else mean + self.pessimism * views.std(0, correction=0)


class CriticNetwork(nn.Module):
    """One member: features of state and goal, and how they differ, to a number of about 0 to 1 for each term.

    Args:
        features: from states [..., D] to [..., E]; few numbers are enough.
        features_size: E.
        terms: K.
        body_size: P, last numbers of a state, which the head sees as they are.
        hidden: width of the head.

    Raises:
        ValueError: if there are no terms.
    """

    def __init__(
        self, features: nn.Module, features_size: int, terms: int, body_size: int = 0, hidden: int = 256
    ) -> None:
        super().__init__()
        if terms < 1:
            raise ValueError(f"terms={terms}: a critic judges at least one intrinsic term")
        self.features, self.terms, self.body_size = features, terms, body_size
        self.head = mlp(3 * features_size + body_size + terms, hidden, terms)

    def forward(self, states: Tensor, goals: Tensor, share: Tensor) -> Tensor:
        """[..., S, D], [..., S or 1, D], [..., S or 1, K] -> [..., S, K]."""
        x = self.features(states)
        g = self.features(goals).expand_as(x)
        share = share.expand(*x.shape[:-1], -1)
        body = states[..., states.shape[-1] - self.body_size :]
        found: Tensor = self.head(torch.cat([x, g, (x - g).abs(), body, share], -1))
        return found
