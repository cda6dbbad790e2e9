"""Barlow Twins (Zbontar et al. 2021), for what is predicted and what is encoded.

Legend: N starts, H horizon, D state, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_jepa.types import Encoded
from lightning_jepa.world_model.criteria.samples import Samples
from lightning_jepa.world_model.criteria.statistics import check_samples, precise, sum_of_products


class BarlowTwins(nn.Module):
    """The correlation of predicted and encoded states is the identity (paper section 4.5, "Barlow Twins").

        invariance = mean_d (1 - c_dd)^2,   redundancy = sum_{d != e} c_de^2 / (D (D - 1)),   c = Corr[v(s~_y), v(s_y)]

    Barlow Twins sums over d and over pairs, the latter with 5e-3: with the weight w of the first term, that is a weight
    of 5e-3 (D - 1) w of the second.

    Args:
        over, expander, state_shape: see `Samples`.
        eps: added to variances.

    Raises:
        ValueError: as `Samples`.
    """

    def __init__(
        self,
        over: str = "batch_time",
        expander: nn.Module | None = None,
        state_shape: Sequence[int] | None = None,
        eps: float = 1e-4,
    ) -> None:
        super().__init__()
        self.samples, self.eps = Samples(over, expander, state_shape), eps

    def forward(self, batch: Encoded) -> dict[str, Tensor]:
        """The terms "invariance" and "redundancy" of its predictions.

        Raises:
            ValueError: if there are fewer than two samples.
        """
        x, y = (self.samples(states.flatten(1, 2)) for states in (batch.predicted, batch.s_y))
        check_samples(x.shape[1], self.samples.joint, "Barlow Twins")
        with torch.autocast(x.device.type, enabled=False):
            x, y = self._unit(precise(x)), self._unit(precise(y))
            c = sum_of_products(x, y, self.samples.joint)
        same = c.diagonal(dim1=1, dim2=2)
        features = same.shape[1]
        off_diagonal = (c - torch.diag_embed(same)).square().sum((1, 2))
        return {
            "invariance": (1 - same).square().mean(),
            "redundancy": off_diagonal.mean() / max(features * (features - 1), 1),
        }

    def _unit(self, v: Tensor) -> Tensor:
        """Centred [G, N, F], so that the sum of squares over all samples is 1."""
        one, joint = torch.ones_like(v[..., :1]), self.samples.joint
        count = sum_of_products(one, one, joint)
        centred = v - sum_of_products(one, v, joint) / count
        squares = sum_of_products(one, centred.square(), joint)
        return centred / (squares + self.eps * count).sqrt()
