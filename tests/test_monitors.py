"""Monitors of training: spread of states, and a linear probe."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_jepa.stages.monitors import LinearProbe
from lightning_jepa.world_model.spread import Spread


def known_samples(std: list[float]) -> Tensor:
    """States whose covariance is diagonal with exactly these standard deviations, around a mean far from zero."""
    size = len(std)
    corners = math.sqrt(size) * torch.diag(torch.tensor(std, dtype=torch.float64))
    return torch.cat([corners, -corners]) + 100


@pytest.mark.parametrize(
    ("std", "rank"),
    [
        ([1.0, 1.0, 1.0, 1.0], 4.0),
        ([3.0, 0.0, 0.0], 1.0),  # a line
        ([0.0, 0.0], 1.0),  # a point
        ([math.sqrt(2), 1.0, 1.0], 2**1.5),  # shares 1/2, 1/4, 1/4: exp of their entropy, 1.5 ln 2
    ],
)
def test_spread_of_known_covariances(std: list[float], rank: float) -> None:
    spread = Spread(len(std))
    spread.update(known_samples(std))
    found = spread.compute()
    assert float(found["effective_rank"]) == pytest.approx(rank, rel=1e-4)
    assert float(found["smallest_std"]) == pytest.approx(min(std), abs=1e-5)
    assert float(found["largest_std"]) == pytest.approx(max(std), abs=1e-5)


def test_monitors_add_up_over_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    states, factors = torch.randn(40, 3, generator=generator), torch.randn(40, 2, generator=generator)
    layouts = torch.randint(4, (40, 2), generator=generator)
    whole, parts = Spread(3), Spread(3)
    probe, probes = LinearProbe("ab"), LinearProbe("ab")
    whole.update(states)
    probe.update(states, factors, layouts)
    for rows in torch.arange(40).split(13):
        parts.update(states[rows])
        probes.update(states[rows], factors[rows], layouts[rows])
    assert all(torch.isclose(whole.compute()[name], value) for name, value in parts.compute().items())
    assert probe.compute() == probes.compute()


def test_states_that_are_not_finite_are_told_as_such() -> None:
    spread, probe = Spread(2), LinearProbe("a")
    states = torch.tensor([[1.0, torch.nan], [2.0, 1.0]])
    spread.update(states)
    probe.update(states, torch.tensor([[1.0], [2.0]]), torch.tensor([[1], [2]]))
    assert all(value.isnan() for value in (*spread.compute().values(), *probe.compute().values()))


def test_probe_r2_is_that_of_ridge_regression_on_held_out_layouts() -> None:
    """States x = +-1, a factor b x + c and one without any relation to x, in two layouts with the same samples.

    x is standardised already; the ridge shrinks the slope to b / (1 + ridge): R2 = 1 - (ridge / (1 + ridge))^2. The
    other's R2 is 0.
    """
    x = torch.tensor([1.0, 1.0, -1.0, -1.0])
    factors = torch.stack([3 * x + 5, torch.tensor([1.0, -1.0, 1.0, -1.0])], 1)
    probe = LinearProbe(("linear", "unrelated"), ridge=0.1)
    for layout in (7.0, 9.0):
        probe.update(x[:, None], factors, torch.full((4, 1), layout))
    found = probe.compute()
    assert float(found["linear"]) == pytest.approx(1 - (0.1 / 1.1) ** 2, abs=1e-5)
    assert float(found["unrelated"]) == pytest.approx(0, abs=1e-5)


def test_probe_is_scored_on_layouts_that_it_was_not_fitted_on() -> None:
    """The relation of state and factor turns round in every second layout: fitted there, it is wrong here."""
    x = torch.tensor([[1.0], [-1.0], [2.0], [-2.0]])
    probe = LinearProbe("a")
    for layout, sign in ((1, 1), (2, -1), (3, 1), (4, -1)):
        probe.update(x, sign * x, torch.tensor([[layout, 0]]).expand(4, -1))
    assert float(probe.compute()["a"]) == pytest.approx(-3, abs=0.1)


@pytest.mark.parametrize("numbers", [0, 1])
def test_probe_of_one_layout_is_unknown(numbers: int) -> None:
    probe = LinearProbe("a")
    probe.update(torch.randn(8, 3), torch.randn(8, 1), torch.zeros(8, numbers))
    assert probe.compute()["a"].isnan()
