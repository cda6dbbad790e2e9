"""Sketched isotropic Gaussian regularisation (LeJEPA, Balestriero and LeCun 2025).

Legend: B batch, T time, D state, G groups, N samples in a group, P directions, K knots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_jepa.types import Encoded
from lightning_jepa.world_model.criteria.samples import Samples
from lightning_jepa.world_model.criteria.statistics import check_samples, everywhere, precise


class SIGReg(nn.Module):
    """Make the states' distribution a standard Gaussian in every direction: one criterion in place of two.

        gaussian = mean_p  integral over t of  |mean_n exp(i t a_p . v_n) - exp(-t^2 / 2)|^2 exp(-t^2 / 2)

    the test statistic of Epps and Pulley along random directions a_p, new ones in every step, by the trapezoid rule
    over [0, 3]. LeJEPA multiplies it by the number of samples; here its weight does not depend on the batch.

    Args:
        directions: P.
        knots: K.
        over, expander, state_shape: see `Samples`.
        seed: of the directions, the same on all processes.

    Raises:
        ValueError: as `Samples`, or if a number is out of its range.
    """

    def __init__(
        self,
        directions: int = 256,
        knots: int = 17,
        over: str = "batch_time",
        expander: nn.Module | None = None,
        state_shape: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if directions < 1 or knots < 2:
            raise ValueError(f"directions={directions} and knots={knots}: give at least 1 and 2")
        self.samples = Samples(over, expander, state_shape)
        self.directions, self.knots, self.seed = directions, knots, seed
        self.register_buffer("drawn", torch.tensor(0))  # in checkpoints, so that a resumed run draws what comes next
        self.drawn: Tensor

    def forward(self, batch: Encoded) -> dict[str, Tensor]:
        """The term "gaussian" of its states.

        Raises:
            ValueError: if there are fewer than two samples.
        """
        v = self.samples(batch.states)
        check_samples(v.shape[1], self.samples.joint, "SIGReg")
        with torch.autocast(v.device.type, enabled=False):
            v = precise(v)
            a = self._directions(v)
            t = torch.linspace(0, 3, self.knots, dtype=v.dtype, device=v.device)
            gauss = (-t.square() / 2).exp()
            sums = Waves.apply(v @ a, float(t[1]), self.knots)
            count = v.new_tensor(float(v.shape[1]))
            if self.samples.joint:
                sums, count = everywhere(sums), everywhere(count)
            real, imaginary = sums / count
            distance = (real - gauss).square() + imaginary.square()
            return {"gaussian": torch.trapezoid(distance * gauss, t).mean()}

    def _directions(self, like: Tensor) -> Tensor:
        """Unit vectors [D, P]."""
        if self.training:
            self.drawn += 1
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.drawn))
        a = torch.randn(like.shape[-1], self.directions, generator=generator).to(like)
        return a / a.norm(dim=0)


class Waves(torch.autograd.Function):
    """Sums over samples of exp(i k step x), k = 0 ... K - 1, from x [G, N, P] to [2, G, P, K], real and imaginary.

    Each wave is the one before it times exp(i step x), so that a sine and a cosine are taken once and not K times, and
    nothing but x is kept for the gradient. That is 4 times as fast as the formula itself (44,000 samples).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: float, knots: int) -> Tensor:
        """See above."""
        ctx.save_for_backward(x)
        ctx.step, ctx.knots = step, knots
        return torch.stack(
            [torch.stack([real.sum(1), imaginary.sum(1)]) for real, imaginary in waves(x, step, knots)], -1
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """D/dx exp(i k step x) = i k step exp(i k step x)."""
        (x,) = ctx.saved_tensors
        found = torch.zeros_like(x)
        for k, (real, imaginary) in enumerate(waves(x, ctx.step, ctx.knots)):
            of_real, of_imaginary = (k * ctx.step * grad[..., k])[:, :, None]
            found.addcmul_(of_imaginary, real).addcmul_(of_real, imaginary, value=-1)
        return found, None, None


def waves(x: Tensor, step: float, knots: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cosine and sine of k step x, k = 0 ... K - 1."""
    real, imaginary = torch.ones_like(x), torch.zeros_like(x)
    c, s = (step * x).cos(), (step * x).sin()
    for k in range(knots):
        yield real, imaginary
        if k < knots - 1:
            real, imaginary = torch.addcmul(real * c, imaginary, s, value=-1), torch.addcmul(imaginary * c, real, s)
