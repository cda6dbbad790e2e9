"""What an energy is good for beside training: which continuation is likely, and how surprising is what was just seen.

Both ask a model for F(x, y) (paper section 4.1); low is compatible.
Legend: B batch, C continuations of each, T time, h context, H horizon, D state, A action.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_jepa.protocols import EnergyModel


def rank(model: EnergyModel, s: Tensor, actions: Tensor, continuations: Tensor) -> tuple[Tensor, Tensor]:
    """Order continuations by their energy, the likeliest first.

    Args:
        model: whose energy.
        s: one state [B, D], or the last h states [B, h, D].
        actions: taken between these states and from there on, [B, h - 1 + H, A].
        continuations: C sequences of states that may follow, [B, C, H, D].

    Returns:
        their order [B, C], the index of the likeliest first, and their energies [B, C] as they were given.

    Raises:
        ValueError: if they are not [B, C, H, D], or an energy is not finite.
    """
    if continuations.dim() != 4 or len(continuations) != len(s):
        raise ValueError(f"continuations of shape {tuple(continuations.shape)}: expected [{len(s)}, C, H, D]")
    energies = _finite(torch.stack([model.energy(s, actions, s_y) for s_y in continuations.unbind(1)], 1))
    return energies.argsort(1), energies


def surprise(model: EnergyModel, states: Tensor, actions: Tensor, context: int = 1) -> Tensor:
    """Energy of each newest observation given those before it: where it is high, what was expected did not happen.

        surprise[t] = F(s[t-h+1 .. t], s[t+1])

    Args:
        model: whose energy.
        states: what was seen, encoded, [B, T, D].
        actions: [B, T - 1, A].
        context: h, states that are known each time.

    Returns:
        [B, T - h], the first for the observation at h.

    Raises:
        ValueError: if no observation has h before it, or an energy is not finite.
    """
    times = states.shape[1]
    if not 1 <= context < times:
        raise ValueError(f"{times} states and context={context}: the newest needs {max(context, 1)} before it")
    seen, done = (part.unfold(1, context, 1).movedim(-1, 2) for part in (states[:, :-1], actions))
    newest = states[:, context:, None]
    energy = _finite(model.energy(seen.flatten(0, 1), done.flatten(0, 1), newest.flatten(0, 1)))
    return energy.unflatten(0, (len(states), times - context))


def _finite(energies: Tensor) -> Tensor:
    spoilt = int((~torch.isfinite(energies)).sum())
    if spoilt:
        raise ValueError(
            f"{spoilt} of {energies.numel()} energies are not finite: check that states and weights are; where z is "
            "inferred by descent, lower latent.rate"
        )
    return energies
