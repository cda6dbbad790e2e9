"""Variance and covariance criteria of VICReg (Bardes, Ponce and LeCun 2022).

Legend: B batch, T time, D state, E expanded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_jepa.types import Encoded
from lightning_jepa.world_model.criteria.samples import Samples
from lightning_jepa.world_model.criteria.statistics import covariance


class VarianceCovariance(nn.Module):
    """Keep the states informative: criteria 1 and 2 against collapse (paper sections 4.4, 4.5.1, Fig. 14).

        variance   = mean_d relu(margin - sqrt(Var[v_d] + eps))
        covariance = sum_{d != e} Cov[v_d, v_e]^2 / (D (D - 1))

    The first keeps each component of v = Exp(s), or of s itself, above a margin; the second drives the components
    apart. The covariance term is a mean over pairs, so that its weight does not depend on D; VICReg divides by D alone:
    times D - 1 turns its published weights into weights for this term. With one single feature the term is 0.

    Args:
        over, expander, state_shape: see `Samples`.
        margin: the standard deviation below which a component is pushed up.
        eps: added to variances, because the slope of a square root has no bound at zero.
        prefix: put before the names of both terms, to tell two of these criteria apart.

    Raises:
        ValueError: as `Samples`.
    """

    def __init__(
        self,
        over: str = "batch_time",
        margin: float = 1.0,
        eps: float = 1e-4,
        expander: nn.Module | None = None,
        state_shape: Sequence[int] | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.samples = Samples(over, expander, state_shape)
        self.margin, self.eps, self.prefix = margin, eps, prefix

    def forward(self, batch: Encoded) -> dict[str, Tensor]:
        """The terms "variance" and "covariance" of its states.

        Raises:
            ValueError: if the states are not of the given shape, or too few for statistics.
        """
        cov = covariance(self.samples(batch.states), self.samples.joint, "VICReg")
        variance = cov.diagonal(dim1=1, dim2=2)
        features = variance.shape[1]
        off_diagonal = (cov - torch.diag_embed(variance)).square().sum((1, 2))
        return {
            f"{self.prefix}variance": torch.relu(self.margin - (variance + self.eps).sqrt()).mean(),
            f"{self.prefix}covariance": off_diagonal.mean() / max(features * (features - 1), 1),
        }
