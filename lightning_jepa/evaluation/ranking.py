"""How well energies tell what happened from what did not."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from lightning_jepa.evaluation.results import Figure, mean


def auroc(true: Tensor, wrong: Tensor) -> Figure:
    """How often what happened has less energy [N] than what did not [M], over all pairs; .5 is chance.

    Raises:
        ValueError: if an energy is not finite, which would pass for a high one.
    """
    energies = torch.cat([true, wrong]).float()
    _check(energies)
    # Their order alone: energies themselves would be squeezed by a sigmoid, large ones to 0.
    _, place = energies.unique(return_inverse=True)
    likely = 1 - place / len(energies)
    return mean([float(binary_auroc(likely, (torch.arange(len(energies)) < len(true)).long()))])


def share_told(true: Tensor, wrong: Tensor) -> Figure:
    """How often what happened has less energy [N] than what did not after the same past [N]; a tie is half of one.

    An energy says which continuation of x is likely, F(x, y) against F(x, y'); how high both are is a matter of x, such
    as of how much goes on, which `auroc` mixes in.

    Raises:
        ValueError: if an energy is not finite.
    """
    _check(torch.cat([true, wrong]))
    tied = torch.isclose(true, wrong, rtol=1e-4, atol=0.0)  # the same frames in another order, but for rounding
    return mean([float(torch.where(tied, 0.5, (true < wrong).float()).mean())])


def _check(energies: Tensor) -> None:
    if not energies.isfinite().all():
        spoilt = int((~energies.isfinite()).sum())
        raise ValueError(f"{spoilt} of {len(energies)} energies are not finite: they can't be ranked")
