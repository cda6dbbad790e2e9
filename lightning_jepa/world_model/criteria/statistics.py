"""Means and covariances of samples, the base of criteria that prevent collapse.

Legend: G groups, N samples in a group, D E features.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sum_of_products(x: Tensor, y: Tensor) -> Tensor:
    """Sum over the samples of each group of x times y, [G, N, D], [G, N, E] -> [G, D, E].

    Counts, means and covariances are all made of this sum, so it is the one place that knows which samples there are.
    """
    return x.transpose(1, 2) @ y


def covariance(x: Tensor) -> Tensor:
    """Unbiased covariance of the features within each group, [G, N, D] -> [G, D, D].

    Samples are centred before they are squared, so that a small variance around a large mean is not lost; and nothing
    is computed in half precision, for the same reason.

    Raises:
        ValueError: if a group has fewer than two samples.
    """
    if x.shape[1] < 2:
        raise ValueError(
            f"statistics over {x.shape[1]} sample(s): variance and covariance need at least 2, and mean something with "
            f"many more; raise data.batch_size, or take them over another axis"
        )
    with torch.autocast(x.device.type, enabled=False):
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        one = torch.ones_like(x[..., :1])
        count = sum_of_products(one, one)
        centred = x - sum_of_products(one, x) / count
        return sum_of_products(centred, centred) / (count - 1)
