"""Linear probes: what can be read off frozen states, on layouts never fitted on.

Ridge regression on standardised features: W = (X'X/N + lambda I)^-1 X'Y/N, with lambda chosen for each factor on a
fifth of the training layouts and W then fitted on all of them.

Legend: N samples, D state, F factors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_jepa.evaluation.results import Figure

Model = TypeVar("Model", bound=nn.Module)
STRENGTHS = tuple(10.0**power for power in range(-7, 2))


@dataclass(frozen=True)
class LinearProbe:
    """Reads F factors off a state: (s - mean) / scale @ weights + bias."""

    mean: Tensor  # [D]
    scale: Tensor  # [D]
    weights: Tensor  # [D, F]
    bias: Tensor  # [F]
    strengths: Tensor  # [F]: the ridge chosen for each factor

    def __call__(self, states: Tensor) -> Tensor:
        """[..., D] -> [..., F], float32."""
        return (states - self.mean) / self.scale @ self.weights + self.bias

    def first(self, factors: int) -> LinearProbe:
        """The probe of the first factors alone."""
        return replace(
            self,
            weights=self.weights[:, :factors],
            bias=self.bias[:factors],
            strengths=self.strengths[:factors],
        )


@dataclass(frozen=True)
class ProbeScores:
    """How well each of F factors is read, on samples that the probe was not fitted on."""

    r2: Tensor  # [F]
    rmse: Tensor  # [F], in the unit of the factor


class _Gram:
    """Moments of standardised features in float64, decomposed once so that every ridge strength is cheap."""

    def __init__(self, states: Tensor, factors: Tensor) -> None:
        self.mean = states.double().mean(0)
        spread = states.double().std(0, correction=0)
        # A constant feature carries nothing; scale 1 keeps it at zero instead of dividing by zero.
        self.scale = torch.where(spread > 1e-9, spread, torch.ones_like(spread))
        self.bias = factors.double().mean(0)
        size = states.shape[1]
        square = self.mean.new_zeros(size, size)
        cross = self.mean.new_zeros(size, factors.shape[1])
        for some, wanted in zip(states.split(4096), factors.split(4096), strict=True):
            x = (some.double() - self.mean) / self.scale
            square += x.T @ x
            cross += x.T @ (wanted.double() - self.bias)
        self.values, self.vectors = torch.linalg.eigh(square / len(states))
        self.turned = self.vectors.T @ (cross / len(states))

    def probe(self, strengths: Tensor) -> LinearProbe:
        """The solution for one strength [F] for each factor."""
        weights = self.vectors @ (self.turned / (self.values.clamp_min(0)[:, None] + strengths))
        return LinearProbe(self.mean.float(), self.scale.float(), weights.float(), self.bias.float(), strengths)


def fit_probe(states: Tensor, factors: Tensor, layouts: Tensor, strengths: Sequence[float] = STRENGTHS) -> LinearProbe:
    """Fit on states [N, D], factors [N, F] of training layouts [N].

    Raises:
        ValueError: if there are fewer than five layouts, too few to choose the ridge strength on some of them.
    """
    distinct = layouts.unique()
    if len(distinct) < 5:
        raise ValueError(f"{len(distinct)} layouts: a probe is chosen on a fifth of its layouts; give five or more")
    kept_back = torch.isin(layouts, distinct[::5]).to(states.device)
    gram = _Gram(states[~kept_back], factors[~kept_back])
    tried = torch.tensor(strengths, dtype=torch.float64, device=states.device)
    factor_count = factors.shape[1]
    r2 = [score(gram.probe(one.expand(factor_count)), states[kept_back], factors[kept_back]).r2 for one in tried]
    return _Gram(states, factors).probe(tried[torch.stack(r2).argmax(0)])


def score(probe: LinearProbe, states: Tensor, factors: Tensor) -> ProbeScores:
    """R2 = 1 - MSE / variance and RMSE, for each factor, on states [N, D] and factors [N, F]."""
    error = (probe(states) - factors).double().square().mean(0)
    variance = factors.double().var(0, correction=0)
    return ProbeScores(r2=1 - error / variance, rmse=error.sqrt())


def r2_figures(probe: LinearProbe, states: Tensor, factors: Tensor, layouts: Tensor, draws: int = 1000) -> list[Figure]:
    """R2 of each factor with the 95 % interval of a bootstrap over layouts; n counts the layouts."""
    _, group = layouts.to(states.device).unique(return_inverse=True)
    count = int(group.max()) + 1
    truth, error = factors.double(), (probe(states) - factors).double()
    # Sums for each layout are enough to rebuild the R2 of any sample of layouts.
    parts = torch.stack([torch.ones_like(truth), truth, truth.square(), error.square()])
    sums = parts.new_zeros(4, count, factors.shape[1]).index_add_(1, group, parts)
    chosen = torch.randint(count, (draws, count), generator=torch.Generator().manual_seed(0))
    times = F.one_hot(chosen, count).sum(1).to(sums)
    n, first, second, squared = torch.einsum("dl,klf->kdf", times, sums)
    sampled = 1 - (squared / n) / (second / n - (first / n).square()).clamp_min(1e-12)
    low, high = sampled.quantile(torch.tensor([0.025, 0.975], dtype=sampled.dtype, device=sampled.device), 0)
    values = score(probe, states, factors).r2
    return [
        Figure(float(v), min(float(v), float(a)), max(float(v), float(b)), count)
        for v, a, b in zip(values, low, high, strict=True)
    ]


def randomised(module: Model, seed: int) -> Model:
    """A copy with the same architecture and buffers but untrained weights: the control of every probe."""
    control = copy.deepcopy(module)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in control.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
            else:
                # Parameters that a module owns itself, such as position embeddings.
                for parameter in part.parameters(recurse=False):
                    nn.init.normal_(parameter, std=0.02)
    return control
