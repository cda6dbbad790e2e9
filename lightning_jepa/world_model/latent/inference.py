"""What it is to infer a latent variable: z = argmin over z of D(s_y, Pred(s_x, a, z)) + R(z) (paper section 4.2).

Legend: N transitions, D state, A action, Z latent, M drawn or guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

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


def descend(objective: Callable[[Tensor], Tensor], z: Tensor, steps: int, rate: float) -> Tensor:
    """Infer z by Adam from where it is: objective [..., Z] -> [...], z [..., Z] -> [..., Z], no gradient to weights.

    Raises:
        ValueError: if the energy is not finite on the way.
    """
    # Tensors made under inference mode, by whoever calls, can't take part in a graph, but their copies can.
    with torch.inference_mode(False), torch.enable_grad():
        found = z.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([found], rate)
        for _ in range(steps):
            energy = objective(found)
            if not torch.isfinite(energy).all():
                raise ValueError("the energy of a latent variable is not finite while z is inferred: lower its rate")
            (found.grad,) = torch.autograd.grad(energy.sum(), found)
            optimizer.step()
    return found.detach()
