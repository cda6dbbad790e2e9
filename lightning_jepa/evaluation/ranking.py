"""How well energies tell what happened from what did not."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from lightning_jepa.evaluation.results import Figure, mean


def auroc(true: Tensor, wrong: Tensor) -> Figure:
    """How often what happened has less energy [N] than what did not [M], over all pairs; .5 is chance."""
    energies = torch.cat([true, wrong]).float()
    # Their order alone: energies themselves would be squeezed by a sigmoid, large ones to 0.
    _, place = energies.unique(return_inverse=True)
    likely = 1 - place / len(energies)
    return mean([float(binary_auroc(likely, (torch.arange(len(energies)) < len(true)).long()))])
