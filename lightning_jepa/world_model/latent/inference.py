"""What it is to infer a latent variable: z = argmin over z of D(s_y, Pred(s_x, a, z)) + R(z) (paper section 4.2).

Legend: N transitions, D state, A action, Z latent, M drawn or guessed, S starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

Predict = Callable[[Tensor], Tensor]  # M guesses of each transition's z, [N, M, Z] -> s~_y [N, M, D]


class Inferred(NamedTuple):
    """The latent variable of N transitions. F(x, y) = distance + regulariser."""

    z: Tensor  # [N, Z], detached: it is inferred, not learned
    predicted: Tensor  # s~_y [N, D] with this z
    distance: Tensor  # D(s_y, s~_y) [N], a mean over the state's numbers
    regulariser: Tensor  # R(z) [N]
    loss: Tensor  # what training minimises in place of the distance, [N]
    terms: dict[str, Tensor]  # and beside it, each [N]


class LatentVariable(Protocol):
    """z, with R(z) or p(z | s, a), and how it is inferred.

    s is what is known [N, D]: the last state, or one after the other as many as the predictor looks back on.
    """

    size: int  # Z, numbers that the predictor is given
    state_size: int  # D
    action_size: int  # A
    noise: int  # numbers in [0, 1) from which one z is made

    def infer(self, predict: Predict, s: Tensor, a: Tensor, s_y: Tensor) -> Inferred:
        """Of transitions from s [N, D] by a [N, A] to a state s_y."""
        ...

    def draw(self, s: Tensor, a: Tensor, uniform: Tensor) -> Tensor:
        """Z of its prior, [N, Z], made of uniform numbers [N, noise]: the same numbers, the same quantile."""
        ...

    def outcomes(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """What a tree branches over: z [N, M, Z] and their probabilities [N, M], of s [N, D] and a [N, A]."""
        ...

    def likeliest(self, s: Tensor, a: Tensor) -> Tensor:
        """The z that the prior holds likeliest, [N, D], [N, A] -> [N, Z]."""
        ...


def distance(s_y: Tensor, predicted: Tensor) -> Tensor:
    """D(s_y, s~_y) = |s_y - s~_y|^2 / D, [..., D] -> [...]."""
    return (s_y - predicted).square().mean(-1)


def random_starts(count: int, starts: int, size: int, like: Tensor, training: bool) -> Tensor:
    """White z to descend from, [N, S, Z]: others each time in training, where no valley is to be favoured.

    Where an energy is asked for they are always the same, for all transitions: so a pair has one energy, and
    continuations differ by what they are rather than by luck.
    """
    if training:
        return torch.randn(count, starts, size, device=like.device, dtype=like.dtype)
    return torch.randn(starts, size, generator=Generator().manual_seed(0)).to(like).expand(count, -1, -1)


def descend(objective: Callable[[Tensor], Tensor], z: Tensor, steps: int, rate: float) -> Tensor:
    """The best z that Adam passes on its way: objective [..., Z] -> [...], z [..., Z] -> [..., Z].

    No gradient flows to weights. Where the energy is not finite on the way, neither is z, nor any energy of it.
    """
    with torch.enable_grad():
        found = z.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([found], rate)
        best, least = found.detach().clone(), found.new_full(found.shape[:-1], torch.inf)
        for step in range(steps + 1):
            energy = objective(found)
            now = energy.detach()
            best = torch.where((now < least)[..., None], found.detach(), best)
            least = torch.minimum(least, now)  # not a number, if one of both is not
            if step < steps:
                (found.grad,) = torch.autograd.grad(energy.sum(), found)
                optimizer.step()
    return torch.where(torch.isfinite(least)[..., None], best, torch.nan)


def check_memory(what: str, numbers: int, like: Tensor, memory_gb: float, mend: str) -> None:
    """ValueError if as many numbers do not fit.

    Args:
        what: takes them.
        numbers: how many, at least.
        like: of this precision.
        memory_gb: what they may take.
        mend: what to do about it.
    """
    needed = numbers * like.element_size() / 2**30
    if needed > memory_gb:
        raise ValueError(f"{what} takes {needed:.1f} GiB and more, latent.memory_gb={memory_gb:g} is allowed: {mend}")
