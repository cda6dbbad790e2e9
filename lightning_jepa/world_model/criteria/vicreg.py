"""Variance and covariance criteria of VICReg (Bardes, Ponce and LeCun 2022).

Legend: B batch, T time, D state, E expanded, c h w a state seen as a map, G groups, N samples in a group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_jepa.world_model.criteria.statistics import covariance


class VarianceCovariance(nn.Module):
    """Keep the states informative: criteria 1 and 2 against collapse (paper sections 4.4, 4.5.1, Fig. 14).

        variance   = mean_d relu(margin - sqrt(Var[v_d] + eps))
        covariance = sum_{d != e} Cov[v_d, v_e]^2 / (D (D - 1))

    The first keeps each component of v = Exp(s), or of s itself, above a margin; the second drives the components
    apart. The covariance term is a mean over pairs, so that its weight does not depend on D; VICReg divides by D alone:
    times D - 1 turns its published weights into weights for this term. With one single feature the term is 0.

    Args:
        over: the samples that statistics are taken over. "batch_time": all states of a batch. "batch": the states of
            the same time step, so that what stays constant in an episode can't vary over time to please the criterion.
            "time": the states of the same episode, so that what tells episodes apart does not count.
        margin: the standard deviation below which a component is pushed up.
        eps: added to variances, because the slope of a square root has no bound at zero.
        expander: v = Exp(s); the criteria act on s itself without one.
        state_shape: (c, h, w) of states that are maps: locations then count as samples, and the c channels as features.
        prefix: put before the names of both terms, to tell two of these criteria apart.

    Raises:
        ValueError: if `over` is unknown or `state_shape` is no map.
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
        if over not in ("batch_time", "batch", "time"):
            raise ValueError(f"over={over!r}: choose 'batch_time', 'batch' or 'time'")
        if state_shape is not None and len(state_shape) != 3:
            raise ValueError(f"state_shape={list(state_shape)}: expected a map [c, h, w], or none for vectors")
        self.over, self.margin, self.eps, self.prefix = over, margin, eps, prefix
        self.expander = nn.Identity() if expander is None else expander
        self.map_shape = None if state_shape is None else tuple(state_shape)

    def forward(self, states: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """States [B, T, D] (actions are not looked at) -> the terms "variance" and "covariance".

        Raises:
            ValueError: if the states are not of the given shape, or too few for statistics.
        """
        cov = covariance(self.groups(states))
        variance = cov.diagonal(dim1=1, dim2=2)
        features = variance.shape[1]
        off_diagonal = (cov - torch.diag_embed(variance)).square().sum((1, 2))
        return {
            f"{self.prefix}variance": torch.relu(self.margin - (variance + self.eps).sqrt()).mean(),
            f"{self.prefix}covariance": off_diagonal.mean() / max(features * (features - 1), 1),
        }

    def groups(self, states: Tensor) -> Tensor:
        """The samples whose statistics are taken together, [B, T, D] -> [G, N, D or E]."""
        samples = states[:, :, None]
        if self.map_shape is not None:
            if states.shape[2] != math.prod(self.map_shape):
                raise ValueError(f"states of {states.shape[2]} numbers are no maps of shape {self.map_shape}")
            samples = states.unflatten(2, self.map_shape).flatten(3).transpose(2, 3)  # [B, T, h w, c]
        expanded: Tensor = self.expander(samples)
        if self.over == "batch_time":
            return expanded.flatten(0, 2)[None]
        if self.over == "batch":
            return expanded.transpose(0, 1).flatten(1, 2)
        return expanded.flatten(1, 2)
