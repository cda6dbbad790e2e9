"""A convolutional predictor: local physics on a state that is a map.

Legend: T time, D state, A action, c h w the state seen as a map, D = c * h * w, channel first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ConvPredictor(nn.Module):
    """s[t+1] = s[t] + f(s[t], a[t]) with convolutions: what happens at a place depends on its surroundings and on the
    action alone (paper section 4.4), so contact with a wall is learned once for all places and layouts.

    The action scales and shifts the channels of each hidden layer. To move a thing is to multiply what is there with
    where it goes: with the action as a mere bias, four times as many pushes at a wall leaked through it after the same
    training. f starts at zero: "nothing changes".

    Args:
        state_shape: (c, h, w).
        action_size: A; 0 where nothing is done or inferred, and all is only watched.
        hidden: channels of the hidden layers.
        depth: hidden layers; each but the first costs `hidden` squared.
        mixing: side of the kernels between hidden layers, 3, or 1 for layers that see one place at a time: with
            `depth=2` and 32 hidden channels that is about 1.4 times faster, and sees 2 places far instead of 3.
        action_width: hidden units between the action and its scales and shifts.
        history: h, successive states that it looks at, the present one included: what moves by itself has a velocity,
            which one state may not show. Where fewer are given, the first stands for those before it.

    Raises:
        ValueError: if the state is no map, or a size does not fit.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        action_size: int,
        hidden: int = 32,
        depth: int = 2,
        mixing: int = 3,
        action_width: int = 64,
        history: int = 1,
    ) -> None:
        super().__init__()
        if len(state_shape) != 3:
            raise ValueError(f"state_shape={list(state_shape)}: a convolutional predictor needs a map [c, h, w]")
        if min(depth, history) < 1 or mixing not in (1, 3):
            raise ValueError(f"depth={depth} and history={history} must be at least 1, mixing={mixing} must be 1 or 3")
        channels, height, width = state_shape
        self.map_shape = (channels, height, width)
        self.state_size, self.action_size = channels * height * width, action_size
        self.history = history
        self.first = nn.Conv2d(channels * history, hidden, 3, padding=1)
        self.action = nn.Sequential(
            nn.Linear(max(1, action_size), action_width), nn.ReLU(), nn.Linear(action_width, 2 * hidden * depth)
        )
        self.middle = nn.ModuleList(nn.Conv2d(hidden, hidden, mixing, padding=mixing // 2) for _ in range(depth - 1))
        self.last = nn.Conv2d(hidden, channels, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs

    def forward(self, s: Tensor, a: Tensor) -> Tensor:
        """[..., T, D], [..., T, A] -> [..., D]."""
        now, done = s[..., -1, :], a[..., -1, :]
        times = torch.arange(s.shape[-2] - 1, s.shape[-2] - 1 - self.history, -1, device=s.device).clamp_min(0)
        looked_at = s.index_select(-2, times)  # the present state first
        leading = torch.broadcast_shapes(now.shape[:-1], done.shape[:-1])
        maps = looked_at.reshape(-1, self.history * self.map_shape[0], *self.map_shape[1:]).contiguous(
            memory_format=torch.channels_last
        )
        if not self.action_size:  # who only watches does nothing
            done = maps.new_ones(*leading, 1)
        modulation = self.action(done).expand(*leading, -1)[..., None, None].chunk(2 * (1 + len(self.middle)), -3)
        # Channels side by side and ReLU in place: on CPU that is worth more than any trick with the convolutions.
        x = self.first(maps)
        x = x.view(*now.shape[:-1], *x.shape[1:])  # once for all actions in the same state
        x = torch.addcmul(modulation[1], x, 1 + modulation[0]).relu_().reshape(-1, *x.shape[-3:])
        each = [part.reshape(-1, *part.shape[-3:]) for part in modulation]
        for layer, scale, shift in zip(self.middle, each[2::2], each[3::2], strict=True):
            x = torch.addcmul(shift, layer(x), 1 + scale).relu_()
        return now + self.last(x).reshape(*leading, -1)
