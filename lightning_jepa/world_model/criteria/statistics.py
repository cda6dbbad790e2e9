"""Sums, means and covariances over the samples of all processes, the base of criteria that prevent collapse.

Legend: G groups, N samples in a group, D E features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Sum(torch.autograd.Function):
    """The sum over processes; backward sums what the processes' losses ask of it."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        summed = local.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


def processes() -> tuple[int, int]:
    """The rank of this process, and how many there are."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def everywhere(local: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on each of them; gradients flow back to every process's part.

    A criterion's statistics are those of the joint batch of all processes: half a batch has another covariance, and a
    criterion that is no mean over samples would be another one on two processes. Every process then has the joint loss;
    backward sums the gradients of all, and DDP's mean over processes makes of that the gradient of the joint loss.
    """
    if processes()[1] == 1:
        return local
    summed: Tensor = _Sum.apply(local)
    return summed


def gathered(local: Tensor) -> tuple[Tensor, int]:
    """The samples [N, ...] of all processes, in the order of their ranks, and the place of this one's first.

    There may be more on some: validation ends with what is left.
    """
    rank, count = processes()
    if count == 1:
        return local, 0
    sizes = torch.zeros(count, dtype=torch.long, device=local.device)
    sizes[rank] = len(local)
    dist.all_reduce(sizes)
    ends = sizes.cumsum(0).tolist()
    start = ends[rank] - len(local)
    slots = local.new_zeros(ends[-1], *local.shape[1:])
    slots[start : start + len(local)] = local
    return everywhere(slots), start


def check_samples(count: int, joint: bool, who: str) -> None:
    """ValueError if there are too few samples to differ from their mean.

    Args:
        count: of this process.
        joint: whether the other processes have as many of the same.
        who: takes statistics of them.
    """
    total = count * (processes()[1] if joint else 1)
    if total < 2:
        raise ValueError(
            f"{who} takes statistics over {total} sample(s): it needs at least 2, and means something with many more; "
            "raise data.batch_size, or take them over another axis"
        )


def precise(x: Tensor) -> Tensor:
    """No half precision, in which statistics lose what they are about."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def sum_of_products(x: Tensor, y: Tensor, joint: bool = True) -> Tensor:
    """Sum over the samples of each group of x times y, [G, N, D], [G, N, E] -> [G, D, E].

    Counts, means and covariances are all made of this sum, so it is the one place that knows which samples there are.

    Args:
        x, y: samples.
        joint: whether the other processes have samples of the same groups.
    """
    local = x.transpose(1, 2) @ y
    return everywhere(local) if joint else local


def covariance(x: Tensor, joint: bool = True, who: str = "a covariance") -> Tensor:
    """Unbiased covariance of the features within each group, [G, N, D] -> [G, D, D].

    Samples are centred before they are squared, so that a small variance around a large mean is not lost; and nothing
    is computed in half precision, for the same reason.

    Args:
        x: samples.
        joint: see `sum_of_products`.
        who: asks, for the message.

    Raises:
        ValueError: if a group has fewer than two samples.
    """
    check_samples(x.shape[1], joint, who)
    with torch.autocast(x.device.type, enabled=False):
        x = precise(x)
        one = torch.ones_like(x[..., :1])
        count = sum_of_products(one, one, joint)
        centred = x - sum_of_products(one, x, joint) / count
        return sum_of_products(centred, centred, joint) / (count - 1)
