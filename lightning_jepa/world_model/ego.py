"""The ego model: what becomes of the agent's own body (paper section 4.8.1).

Legend: B batch, T time, C F G channels and sides of a map, P body, A action, Q hidden channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class EgoModel(nn.Module):
    """body[t+1] = keep * body[t] + change(s[t+1], body[t], a[t]), small and deterministic.

    `keep` is learned for each channel: a level stays about what it was (near 1), what is felt at once does not, and
    errors of a long prediction do not add up in it.

    What the body meets is local and seen: of the features of each place of the predicted map and its neighbours the
    largest count, so that what was learned here holds everywhere. In their sum one place is lost among all the others:
    from pictures, a network with the sum learned less in 300 steps than one with the largest in 100 (correlation with
    pain .80 against .95). Gradients reach the states, which learn to tell what matters to the body.

    Args:
        state_shape: C, F, G of the external state.
        action_size: A.
        body_size: P.
        hidden: Q.

    Raises:
        ValueError: if there is no body.
    """

    def __init__(self, state_shape: Sequence[int], action_size: int, body_size: int, hidden: int = 32) -> None:
        super().__init__()
        if body_size < 1:
            raise ValueError(f"body_size={body_size}: an ego model needs a body; leave it out (ego: null) without one")
        self.state_shape, self.body_size = tuple(state_shape), body_size
        self.local = nn.Sequential(
            nn.Conv2d(self.state_shape[0], hidden, 3, padding=1), nn.SiLU(), nn.Conv2d(hidden, hidden, 1), nn.SiLU()
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
        self.change = nn.Sequential(
            nn.Linear(hidden + body_size + action_size, hidden), nn.SiLU(), nn.Linear(hidden, body_size)
        )
        self.tenth = nn.Parameter(torch.full((body_size,), 0.05))  # of `keep`, which so learns faster than weights do

    def forward(self, s: Tensor, body: Tensor, a: Tensor) -> Tensor:
        """External state after the action [..., C * F * G], body before it [..., P], action [..., A] -> [..., P]."""
        return self._felt(self._met(s), body, a)

    def along(self, s: Tensor, body: Tensor, a: Tensor) -> Tensor:
        """What is felt along a way: external states after each action [B, T, C * F * G], the body before the first one
        [B, P], actions [B, T, A] -> [B, T, P]. Each step starts from what was predicted to be felt before.
        """
        felt = []
        for met, action in zip(self._met(s).unbind(1), a.unbind(1), strict=True):
            body = self._felt(met, body, action)
            felt.append(body)
        return torch.stack(felt, 1)

    def _met(self, s: Tensor) -> Tensor:
        """What the body meets, [..., C * F * G] -> [..., Q]."""
        maps = s.reshape(-1, *self.state_shape).contiguous(memory_format=torch.channels_last)
        return self.local(maps).amax((-1, -2)).unflatten(0, s.shape[:-1])

    def _felt(self, met: Tensor, body: Tensor, a: Tensor) -> Tensor:
        change: Tensor = self.change(torch.cat([met, body, a], -1))
        return 10 * self.tenth * body + change
