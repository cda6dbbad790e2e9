"""Criteria of predicted against encoded states, those on whole distributions, and one loss on many processes."""

from __future__ import annotations

import copy
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_jepa.perception.expander import Expander
from lightning_jepa.types import Encoded
from lightning_jepa.world_model.criteria.barlow import BarlowTwins
from lightning_jepa.world_model.criteria.contrastive import InfoNCE, MarginHinge
from lightning_jepa.world_model.criteria.sigreg import SIGReg, Waves
from lightning_jepa.world_model.criteria.vicreg import VarianceCovariance
from lightning_jepa.world_model.target import SlowEncoder

B, T, N, H, D = 6, 5, 2, 2, 4


def batch(seed: int = 0, windows: int = B) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    draw = {"states": (windows, T, D), "actions": (windows, T - 1, 2)}
    states, actions = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in draw.values())
    predicted, s_y = torch.randn(2, windows, N, H, D, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 256, (windows, N, H, 1, 3, 3), generator=generator, dtype=torch.uint8)
    return Encoded(states, actions, predicted, s_y, y)


def alike(x: Encoded) -> Encoded:
    """The same, predicted without error."""
    return x._replace(predicted=x.s_y)


def test_sigreg_is_its_equation() -> None:
    """mean_p integral_0^3 |mean_n exp(i t a_p . v_n) - exp(-t^2/2)|^2 exp(-t^2/2) dt, a_p of unit length."""
    criterion, x = SIGReg(directions=3, knots=400), batch()
    a = criterion._directions(x.states)
    torch.testing.assert_close(a.norm(dim=0), torch.ones(3, dtype=torch.float64), atol=1e-6, rtol=0)
    criterion.drawn -= 1  # so that the same are drawn again
    v = x.states.flatten(0, 1)
    t = torch.linspace(0, 3, 4000, dtype=torch.float64)
    found = []
    for direction in a.T:
        phase = torch.exp(1j * t * (v @ direction)[:, None]).mean(0)
        gauss = torch.exp(-(t**2) / 2)
        found.append(torch.trapezoid((phase - gauss).abs() ** 2 * gauss, t))
    torch.testing.assert_close(criterion(x)["gaussian"], torch.stack(found).mean(), atol=1e-5, rtol=1e-3)


def test_waves_are_sums_of_exponentials() -> None:
    """sum_n exp(i k step x_n), and its derivative by finite differences."""
    x = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    angle = x[..., None] * 0.2 * torch.arange(7)
    torch.testing.assert_close(Waves.apply(x, 0.2, 7), torch.stack([angle.cos().sum(1), angle.sin().sum(1)]))
    assert torch.autograd.gradcheck(lambda x: Waves.apply(x, 0.2, 7), (x,))


def test_sigreg_is_least_for_a_standard_gaussian() -> None:
    """Collapsed, narrow, wide and two-peaked states all cost more; states of a Gaussian nearly nothing."""
    torch.manual_seed(0)
    white = torch.randn(200, 5, 3)
    peaks = torch.where(torch.rand(200, 5, 3) < 0.5, -1.0, 1.0)
    others = [torch.zeros(200, 5, 3), 0.3 * white, 3 * white, peaks, white[..., :1].expand(-1, -1, 3)]
    costs = [float(SIGReg()(batch()._replace(states=s))["gaussian"]) for s in (white, *others)]
    assert costs[0] < 0.002
    assert min(costs[1:]) > 10 * costs[0]


def test_sigreg_draws_new_directions_in_training_alone_and_goes_on_from_a_checkpoint() -> None:
    x, criterion = batch(), SIGReg(directions=2)
    first, second = float(criterion(x)["gaussian"]), float(criterion(x)["gaussian"])
    assert first != second
    resumed = SIGReg(directions=2)
    resumed.load_state_dict(criterion.state_dict())
    assert float(resumed(x)["gaussian"]) == float(criterion(x)["gaussian"])
    criterion.eval()
    assert float(criterion(x)["gaussian"]) == float(criterion(x)["gaussian"])


def test_barlow_is_its_equation() -> None:
    """invariance = mean (1 - c_dd)^2, redundancy = mean over pairs of c_de^2, of the correlation c of both branches."""
    x = batch()
    both = torch.cat([x.predicted.flatten(0, 2), x.s_y.flatten(0, 2)], 1)
    c = torch.corrcoef(both.T)[:D, D:]
    terms = BarlowTwins(eps=0.0)(x)
    torch.testing.assert_close(terms["invariance"], (1 - c.diagonal()).square().mean())
    torch.testing.assert_close(terms["redundancy"], (c - c.diag().diag()).square().sum() / (D * (D - 1)))


def test_barlow_punishes_collapse_and_copies() -> None:
    x = batch(windows=200)
    flat = x._replace(predicted=torch.ones_like(x.s_y), s_y=torch.ones_like(x.s_y))
    same = alike(x._replace(s_y=x.s_y[..., :1].expand_as(x.s_y)))
    assert BarlowTwins()(flat)["invariance"] == pytest.approx(1)
    assert BarlowTwins()(same)["redundancy"] == pytest.approx(1, rel=1e-3)
    assert max(BarlowTwins()(alike(x)).values()) < 0.01


@pytest.mark.parametrize("over", ["batch_time", "batch", "time"])
def test_info_nce_is_its_equation(over: str) -> None:
    """mean_x F(x, y) / tau + log sum_y' exp(-F(x, y') / tau),  F(x, y') = |s~_y - s_y'|^2 / D."""
    x, found = batch(), []
    for b in range(B):
        for q in range(N * H):
            predicted, s_y = x.predicted.flatten(1, 2), x.s_y.flatten(1, 2)
            others = {"batch_time": s_y.flatten(0, 1), "batch": s_y[:, q], "time": s_y[b]}[over]
            energy = (predicted[b, q] - others).square().mean(-1) / 0.5
            true = (predicted[b, q] - s_y[b, q]).square().mean() / 0.5
            found.append(true + torch.logsumexp(-energy, 0))
    torch.testing.assert_close(InfoNCE(0.5, over)(x)["nce"], torch.stack(found).mean())


@pytest.mark.parametrize("over", ["batch_time", "batch", "time"])
def test_the_hinge_is_its_equation(over: str) -> None:
    """mean over y' != y of relu(F(x, y) - F(x, y') + m |y - y'|^2), pictures in [0, 1]."""
    x, found = batch(), []
    predicted, s_y, y = (part.flatten(1, 2) for part in (x.predicted, x.s_y, x.y.double().flatten(3) / 255))
    for b in range(B):
        for q in range(N * H):
            every = [(i, j) for i in range(B) for j in range(N * H)]
            others = [(i, j) for i, j in every if over == "batch_time" or (j == q if over == "batch" else i == b)]
            for other in (place for place in others if place != (b, q)):
                energies = [(predicted[b, q] - s_y[place]).square().mean() for place in ((b, q), other)]
                margin = 3.0 * (y[b, q] - y[other]).square().mean()
                found.append(torch.relu(energies[0] - energies[1] + margin))
    torch.testing.assert_close(MarginHinge(3.0, over)(x)["hinge"], torch.stack(found).mean(), check_dtype=False)


@pytest.mark.parametrize("criterion", [InfoNCE(0.1, "time"), MarginHinge(10.0)])
def test_contrastive_energies_part_what_collapsed(criterion: nn.Module) -> None:
    """Of states all alike, with pictures that differ, the gradient at a step from there parts them."""
    torch.manual_seed(0)
    s_y = nn.Parameter(0.01 * torch.randn(B, N, H, D))
    optimizer = torch.optim.Adam([s_y], 0.05)
    x = batch()
    for _ in range(150):
        optimizer.zero_grad()
        next(iter(criterion(x._replace(predicted=s_y, s_y=s_y)).values())).backward()
        optimizer.step()
    assert s_y.std() > 0.1


@pytest.mark.parametrize(
    ("make", "x", "message"),
    [
        (lambda: InfoNCE(over="space"), None, "batch_time"),
        (lambda: InfoNCE(temperature=0.0), None, "above 0"),
        (lambda: MarginHinge(over="space"), None, "batch_time"),
        (lambda: MarginHinge(margin=-1.0), None, "above 0"),
        (lambda: SIGReg(directions=0), None, "at least 1"),
        (lambda: InfoNCE(over="batch"), batch(windows=1), "InfoNCE over 'batch' finds no other"),
        (lambda: MarginHinge(over="batch"), batch(windows=1), "hinge over 'batch' finds no other"),
        (lambda: BarlowTwins(over="batch"), batch(windows=1), "Barlow Twins takes statistics over 1 sample"),
        (lambda: VarianceCovariance(over="batch"), batch(windows=1), "VICReg takes statistics over 1 sample"),
        (lambda: SIGReg(over="batch"), batch(windows=1), "SIGReg takes statistics over 1 sample"),
    ],
)
def test_what_is_refused(make: Any, x: Encoded | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()(x)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_second_branch_follows_and_gets_no_gradient(decay: float) -> None:
    """w' <- decay w' + (1 - decay) w after each step; s_y = Enc'(y) is a constant."""
    torch.manual_seed(0)
    encoder = nn.Linear(D, D)
    slow = SlowEncoder(encoder, decay)
    before = slow.encoder.weight.clone()
    assert torch.equal(before, encoder.weight)
    with torch.no_grad():
        encoder.weight += 1
    y = torch.randn(3, D)
    assert not slow(y).requires_grad
    torch.testing.assert_close(slow(y), y @ before.T + slow.encoder.bias)
    slow.follow(encoder)
    torch.testing.assert_close(slow.encoder.weight, decay * before + (1 - decay) * encoder.weight)
    assert slow.encoder.weight.data_ptr() != encoder.weight.data_ptr()
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match="decay"):
            SlowEncoder(encoder, wrong)


CRITERIA: dict[str, Any] = {
    "vicreg": lambda: VarianceCovariance(expander=Expander(D, 8)),
    "vicreg over the batch": lambda: VarianceCovariance(over="batch", margin=3.0),
    "vicreg over time": lambda: VarianceCovariance(over="time", margin=3.0),
    "vicreg over places": lambda: VarianceCovariance(over="place", margin=3.0, state_shape=[2, 1, 2]),
    "sigreg": lambda: SIGReg(directions=5),
    "barlow": lambda: BarlowTwins(over="batch"),
    "infonce": lambda: InfoNCE(0.5),
    "infonce over the batch": lambda: InfoNCE(0.5, "batch"),
    "infonce over time": lambda: InfoNCE(0.5, "time"),
    "hinge": lambda: MarginHinge(3.0),
    "hinge over batch and time": lambda: MarginHinge(3.0, "batch_time"),
}


def learned(module: nn.Module, encoder: nn.Module, x: Encoded) -> tuple[Tensor, list[Tensor]]:
    """The sum of its terms on what the encoder makes of a batch, and the gradients of all weights."""
    terms = module(x._replace(**{name: encoder(getattr(x, name)) for name in ("states", "predicted", "s_y")}))
    loss = torch.stack(list(terms.values())).sum()
    weights = [*encoder.parameters(), *module.parameters()]
    return loss.detach(), list(torch.autograd.grad(loss, weights))


def of_rank(rank: int, store: str, modules: dict[str, nn.Module], encoder: nn.Module, x: Encoded) -> None:
    """What DDP does: each process its half of the batch, gradients averaged."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    half = Encoded(*(part.chunk(2)[rank] for part in x))
    found = {name: learned(module, encoder, half) for name, module in modules.items()}
    uneven = Encoded(*(part.split([3, 5])[rank] for part in x))
    for name in ("infonce", "infonce over the batch"):
        loss = learned(modules[name], encoder, uneven)[0] * len(uneven.states) / len(x.states)
        dist.all_reduce(loss)
        found[f"{name}, unevenly"] = loss, []
    for name in modules:
        for part in (found[name][0], *found[name][1]):
            dist.all_reduce(part)
            part /= 2
    if rank == 0:
        torch.save(found, f"{store}.found")
    dist.destroy_process_group()


def test_value_and_gradient_on_two_processes_are_those_of_the_joint_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, encoder = batch(windows=8), nn.Linear(D, D).double()
    modules = {name: make().double() for name, make in CRITERIA.items()}
    expected = {name: learned(copy.deepcopy(module), encoder, x) for name, module in modules.items()}
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=of_rank, args=(i, str(tmp_path / "store"), modules, encoder, x)) for i in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert process.exitcode == 0
    found = torch.load(tmp_path / "store.found", weights_only=True)
    for name, (loss, gradients) in expected.items():
        torch.testing.assert_close(found[name][0], loss, msg=lambda text, name=name: f"{name}: {text}")
        for one, joint in zip(found[name][1], gradients, strict=True):
            torch.testing.assert_close(one, joint, msg=lambda text, name=name: f"gradient of {name}: {text}")
    for name in ("infonce", "infonce over the batch"):  # as validation ends
        torch.testing.assert_close(found[f"{name}, unevenly"][0], expected[name][0])
