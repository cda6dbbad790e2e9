"""One level of a hierarchy above the first: states of states, by actions that stand for many.

Legend: B batch, T time, n steps of the level below, D below's state, E this level's, A below's action, M this level's
action, N remembered chunks, C c channels below and here, h w map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_jepa.layers import mlp
from lightning_jepa.world_model.jepa import JEPA


class MacroAction(nn.Module):
    """A chunk of n actions of the level below as one abstract action, between -1 and 1.

        a2 = tanh(W chunk + MLP(chunk))

    W is learned, from the chunk's slowest cosines on: its mean, then what turns once, so that from the first step on
    macro-actions say about where a chunk leads. From random weights this took too long to learn: after 3000 steps the
    sum of ten displacements was read off a macro-action of 4 numbers with an error of 3.4 pixels.

    Args:
        steps: n.
        action_size: A.
        size: M; few, so that a planner can search among them, and what it finds is something that was done.
        hidden: width of the hidden layer.
        action_scale: actions of the level below are divided by it.

    Raises:
        ValueError: if an abstract action would be larger than what it stands for.
    """

    def __init__(self, steps: int, action_size: int, size: int, hidden: int = 128, action_scale: float = 1.0) -> None:
        super().__init__()
        if steps < 1 or not 1 <= size <= steps * action_size:
            raise ValueError(
                f"a macro-action of {size} numbers for {steps} actions of {action_size}: give at least 1 step, and "
                f"between 1 and {max(1, steps) * action_size} numbers"
            )
        self.steps, self.below_size, self.size, self.action_scale = steps, action_size, size, action_scale
        self.slow = nn.Linear(steps * action_size, size, bias=False)
        self.layers = mlp(steps * action_size, hidden, size, depth=1)
        with torch.no_grad():
            self.slow.weight.copy_(slow_cosines(steps, action_size)[:size])
            for parameter in self.layers[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, chunks: Tensor) -> Tensor:
        """[..., n, A] -> [..., M], between -1 and 1.

        Raises:
            ValueError: if the chunks are of another shape.
        """
        if chunks.shape[-2:] != (self.steps, self.below_size):
            raise ValueError(
                f"chunks of {list(chunks.shape[-2:])}, expected [{self.steps}, {self.below_size}]: the windows' stride "
                "must be the product of the levels' steps"
            )
        chunk = chunks.flatten(-2) / self.action_scale
        return torch.tanh(self.slow(chunk) + self.layers(chunk))


def slow_cosines(steps: int, action_size: int) -> Tensor:
    """Projections of chunks on cosines over time, the slowest first: [n A, n A] from chunks [n A].

    row k A + i:  (2 if k else 1) / n  cos(pi k (t + 1/2) / n)   of component i of the action at step t
    """
    times = torch.arange(steps)
    waves = torch.cos(torch.pi * times[:, None] * (times + 0.5) / steps) * (1 + (times > 0))[:, None] / steps
    return torch.kron(waves, torch.eye(action_size))


class Same(nn.Module):
    """The identity as the encoder of a level: its states are those of the level below.

    Args:
        state_size: D.
    """

    def __init__(self, state_size: int) -> None:
        super().__init__()
        self.state_size = self.below_size = state_size

    def forward(self, states: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return states


class MapAbove(nn.Module):
    """A smaller map above a map: what is kept of each place, and what is left out, is for training to find.

        s2 = W s + f(s)

    W begins as a projection of each place on orthogonal directions and f at zero, so that s2 can be predicted about as
    well as s from the first step on. From random weights, where all of s2 is new, training was content with what stays
    as it is, and let the agent go.

    Args:
        below_shape: C, h, w of the level below; what is felt, which comes after it, is left out.
        channels: c.
        hidden: channels of the hidden layer.

    Raises:
        ValueError: if the map is not smaller.
    """

    def __init__(self, below_shape: Sequence[int], channels: int, hidden: int = 64) -> None:
        super().__init__()
        if len(below_shape) != 3 or not 1 <= channels < below_shape[0]:
            raise ValueError(
                f"{channels} channels above a map of shape {list(below_shape)}: give [C, h, w], and fewer channels"
            )
        self.below_shape = tuple(below_shape)
        self.below_size = below_shape[0] * below_shape[1] * below_shape[2]
        self.state_size = channels * below_shape[1] * below_shape[2]
        self.kept = nn.Conv2d(below_shape[0], channels, 1, bias=False)
        self.layers = nn.Sequential(
            nn.Conv2d(below_shape[0], hidden, 3, padding=1), nn.SiLU(), nn.Conv2d(hidden, channels, 1)
        )
        nn.init.orthogonal_(self.kept.weight)
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs

    def forward(self, states: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, E].

        Raises:
            ValueError: if the states are smaller than that map.
        """
        if states.shape[-1] < self.below_size:
            raise ValueError(
                f"states of {states.shape[-1]} numbers, this level was built above a map of {list(self.below_shape)}"
            )
        maps = states[..., : self.below_size].reshape(-1, *self.below_shape)
        maps = maps.contiguous(memory_format=torch.channels_last)
        above: Tensor = self.kept(maps) + self.layers(maps)
        return above.reshape(*states.shape[:-1], -1)


class Support(NamedTuple):
    """Macro-actions that were done: around them the level's predictions can be trusted."""

    mean: Tensor  # [M]
    root: Tensor  # [M, M]: mean + root w has their covariance where w is white


class Level(nn.Module):
    """A JEPA over the states of the level below, n of whose steps are one of its own (paper section 4.6).

        s2 = Enc2(s),   a2 = Act2(a[0], ..., a[n - 1]),   s2[t + n] = Pred2(s2[t], a2)

    It is the same architecture as below, with states in the place of pictures.

    Args:
        jepa: Enc2, from states [B, T, D] to [B, T, E], and Pred2.
        macro: Act2.
        metric: from states [..., E] to a space whose distances say what to approach, which a `geometry` trains; states
            if None.
        pool: states of the level below, at most that many up to the present one, of which Enc2 sees the mean.
        remembered: N, chunks of training data that are kept to tell which macro-actions there are.
        reach: Mode-1 of the level below, from states [..., E] and [..., E] to the chunk [..., n, A] that leads from one
            to the other, with a `misfit`; or none.

    Raises:
        ValueError: if the two do not fit.
    """

    chunks: Tensor
    seen: Tensor

    def __init__(
        self,
        jepa: JEPA,
        macro: MacroAction,
        metric: nn.Module | None = None,
        pool: int = 1,
        remembered: int = 1024,
        reach: Any | None = None,
    ) -> None:
        super().__init__()
        if jepa.action_size != macro.size or jepa.action_scale != 1:
            raise ValueError(
                f"the level's predictor takes actions of {jepa.action_size} numbers at a scale of "
                f"{jepa.action_scale:g}, its macro-actions have {macro.size} between -1 and 1: give the same size, and "
                "an action_scale of 1"
            )
        if min(pool, remembered) < 1:
            raise ValueError(f"pool={pool}, remembered={remembered}: give at least 1")
        self.jepa, self.macro, self.pool = jepa, macro, pool
        self.metric = metric if metric is not None else nn.Identity()
        self.reach = reach
        self.register_buffer("chunks", torch.zeros(remembered, macro.steps, macro.below_size))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    @property
    def below_size(self) -> int:
        """D."""
        encoder: Any = self.jepa.encoder
        size: int = encoder.below_size
        return size

    @property
    def steps(self) -> int:
        """Of the level below, in one of this: n."""
        return self.macro.steps

    def lift(self, states: Tensor) -> Tensor:
        """Successive states of the level below, [B, T, D] -> this level's [B, T, E]."""
        return self.jepa.encode(self.pooled(states))

    def pooled(self, states: Tensor) -> Tensor:
        """What Enc2 sees of successive states [B, T, D]: the mean of those up to each."""
        if self.pool == 1:
            return states
        total = states.cumsum(1)
        before = torch.cat([torch.zeros_like(total[:, : self.pool]), total], 1)[:, : total.shape[1]]
        count = torch.arange(1, states.shape[1] + 1, device=states.device).clamp_max(self.pool)
        return (total - before) / count[:, None]

    @torch.no_grad()
    def remember(self, chunks: Tensor) -> None:
        """Keep some of the chunks [B, n, A] of a batch, in the place of the oldest ones."""
        count = min(len(chunks), len(self.chunks))
        places = (self.seen + torch.arange(count, device=chunks.device)) % len(self.chunks)
        self.chunks[places] = chunks[:count].to(self.chunks)
        self.seen += count

    @torch.no_grad()
    def support(self) -> Support:
        """Mean and spread of the macro-actions that were done.

        Raises:
            ValueError: if none were.
        """
        known = int(self.seen.clamp_max(len(self.chunks)))
        if known <= self.macro.size:
            raise ValueError(
                f"this level has seen {known} chunks of actions, which do not tell what a macro-action of "
                f"{self.macro.size} numbers may be: train it first (train=level2)"
            )
        macros = self.macro(self.chunks[:known]).double()
        values, axes = torch.linalg.eigh(macros.T.cov(correction=0) if self.macro.size > 1 else macros.var().view(1, 1))
        root = axes * values.clamp_min(0).sqrt()
        return Support(macros.mean(0).float(), root.float())


class Whitened:
    """A level as a world model (protocol `WorldModel`) whose actions are white where they are what was done.

    A planner's bound on the norm of an action then is one on how unusual it may be, in standard deviations.

    Args:
        level: which.

    Raises:
        ValueError: if it pools, as a plan knows one state below and not those before it; or was not trained.
    """

    def __init__(self, level: Level) -> None:
        if level.pool > 1:
            raise ValueError(
                f"this level pools the last {level.pool} states of the level below, of which a plan knows one: train a "
                "level with pool=1 to plan with"
            )
        self.level, self.jepa, self.metric, self.reach = level, level.jepa, level.metric, level.reach
        self.mean, self.root = level.support()
        self.action_size, self.steps = level.macro.size, level.steps

    def encode(self, observations: Tensor, body: Tensor | None = None) -> Tensor:
        """States of the level below, [B, T, D] -> [B, T, E]."""
        return self.level.lift(observations)

    @property
    def noise(self) -> int:
        """Numbers that decide what happens in a step of a scenario; 0 for a level without z."""
        return self.jepa.noise

    def white(self, actions: Tensor) -> Tensor:
        """Macro-actions [..., M] -> the white ones that stand for them."""
        return (actions - self.mean) @ torch.linalg.pinv(self.root).T

    def done(self, actions: Tensor) -> Tensor:
        """The macro-actions that white ones [..., M] stand for."""
        return (self.mean + actions @ self.root.T).clamp(-1, 1)

    def rollout(self, s: Tensor, actions: Tensor) -> Tensor:
        """[B, E], [B, S, H, M] -> [B, S, H, E]."""
        return self.jepa.rollout(s, self.done(actions))

    def outcomes(self, s: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """What a step may lead to, [N, E], [N, M] -> [N, K, E] and chances [N, K]."""
        return self.jepa.outcomes(s, self.done(actions))

    def scenarios(self, s: Tensor, actions: Tensor, uniform: Tensor) -> Tensor:
        """[B, E], [B, S, H, M], in K scenarios made of numbers [K, H, U] -> [B, S, K, H, E]."""
        return self.jepa.scenarios(s, self.done(actions), uniform)

    def energy(self, s: Tensor, actions: Tensor, s_y: Tensor) -> Tensor:
        """F(x, y) of continuations [B, H, E] from [B, E] by [B, H, M]: [B]."""
        return self.jepa.energy(s, self.done(actions), s_y)
