"""The loss of pretraining: sum_i weight_i term_i, with gradients through both branches."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pretraining import SIZE, WEIGHTS, collect_shards, data, first_batch, stage, trainer
from torch import Tensor, nn

from lightning_jepa.callbacks.checkpoints import LastCheckpoint
from lightning_jepa.callbacks.gradients import GradientAlarm
from lightning_jepa.types import Encoded
from lightning_jepa.world_model.criteria.temporal_contrast import TemporalContrast
from lightning_jepa.world_model.metric import MetricSpace


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return collect_shards(tmp_path_factory.mktemp("shards"))


@pytest.mark.parametrize("stride", [1, 6])
def test_temporal_contrast_is_its_equation(stride: int) -> None:
    """contrast = - mean over both directions of log exp(-F(t, t')) / sum_{u != t} exp(-F(t, u)), t' the next or last,
    F(t, u) = |v[t] - v[u]|^2 / stride."""
    states = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    v = states.double().numpy()
    energy = np.square(v[:, :, None] - v[:, None]).sum(-1) / stride
    terms = []
    for episode in energy:
        for t, other in [(t, t + 1) for t in range(4)] + [(t, t - 1) for t in range(1, 5)]:
            likely = np.exp(-np.delete(episode[t], t)).sum()
            terms.append(episode[t, other] + np.log(likely))
    found = TemporalContrast(nn.Identity())(states, stride)
    assert found.keys() == {"contrast"}
    assert float(found["contrast"]) == pytest.approx(np.mean(terms), rel=1e-5)


def test_temporal_contrast_teaches_metric_and_states() -> None:
    states = torch.randn(2, 4, SIZE, requires_grad=True)
    contrast = TemporalContrast(MetricSpace(SIZE, hidden=8))
    contrast(states, 2)["contrast"].backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in (states, *contrast.parameters()))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("horizon", [4, 1], ids=["within", "beyond"])
def test_the_metric_may_learn_from_what_is_imagined(shards: str, apart: bool, horizon: int) -> None:
    """imagined = mean |v(s~) - v(s)|^2, of the first states, or of predictions longer than those that are minimised.

    It teaches the metric, and the predictor unless it is apart.
    """
    geometry = TemporalContrast(MetricSpace(SIZE, size=3, hidden=8), apart, imagined=2)
    module = stage(geometry=geometry, weights={**WEIGHTS, "imagined": 1.0}, horizon=horizon)
    nn.init.normal_(module.jepa.predictor.last.weight)
    batch = first_batch(shards)
    terms, states = module.terms(batch)
    off = []
    for begin in [0] if horizon > 2 else [0, 2]:
        predicted = module.jepa.predict(states[:, begin], batch[0].actions[:, begin : begin + 2, 0])
        off.append(geometry.metric(predicted) - geometry.metric(states[:, begin + 1 : begin + 3]))
    expected = torch.stack(off).square().sum(-1).mean()
    assert torch.allclose(terms["imagined"], expected, rtol=1e-4)
    module.weighted(terms)
    terms["imagined"].backward()
    assert all(weight.grad is not None for weight in geometry.parameters())
    assert all((weight.grad is None) == apart for weight in module.jepa.parameters())


def test_all_levels_teach_the_geometry(shards: str) -> None:
    """Its term is the mean of those of each level, at that level's stride."""
    module, batch = stage(), first_batch(shards)
    terms, states = module.terms(batch)
    coarse = module.geometry(module.jepa.encode(batch[1].observations), 6)["contrast"]
    assert torch.allclose(terms["contrast"], (module.geometry(states, 1)["contrast"] + coarse) / 2)


def test_what_the_geometry_refuses() -> None:
    with pytest.raises(ValueError, match="windows of 2 states: a contrast over time needs at least 3"):
        TemporalContrast(nn.Identity())(torch.randn(2, 2, 3), 1)
    with pytest.raises(ValueError, match="geometry.imagined=True: give a number"):
        TemporalContrast(nn.Identity(), imagined=True)


@pytest.mark.parametrize("apart", [False, True])
def test_distances_may_be_read_off_states_that_others_make(apart: bool) -> None:
    states, metric = torch.randn(2, 5, 3, requires_grad=True), nn.Linear(3, 2)
    TemporalContrast(metric, apart)(states, 1)["contrast"].backward()
    assert (states.grad is None) == apart
    assert metric.weight.grad.abs().sum() > 0
    with pytest.raises(
        ValueError, match=r"states of 7 numbers, .* for 8 and a body of 0: set geometry.metric.state_size"
    ):
        MetricSpace(8)(torch.randn(2, 7))


def test_the_metric_is_the_geometrys_or_none() -> None:
    assert isinstance(stage().metric, MetricSpace)
    states = torch.randn(2, 3)
    assert stage(geometry=None).metric(states) is states


def test_prediction_sends_gradients_through_both_branches(shards: str) -> None:
    """E = |s[t+k] - Pred(s[t], a)|^2: the start s[0] and the targets s[1..4] of the one prediction get a gradient."""
    terms, states = stage().terms(first_batch(shards))
    (grad,) = torch.autograd.grad(terms["prediction"], states)
    assert (grad.abs().sum((0, 2)) > 0).all()
    targets = grad[:, 1:]
    actions = first_batch(shards)[0].actions[:, :, 0]
    module = stage()
    expected = 2 * (states[:, 1:] - module.jepa.predict(states[:, 0], actions)) / (len(states) * 4 * SIZE)
    assert torch.allclose(targets, expected, atol=1e-7)


def test_every_weight_learns(shards: str) -> None:
    module = stage()
    nn.init.normal_(module.jepa.predictor.last.weight)  # zero at first, which hides the layers below from the loss
    terms, _ = module.terms(first_batch(shards))
    assert terms.keys() == WEIGHTS.keys()
    torch.stack(list(terms.values())).sum().backward()
    assert [name for name, weight in module.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_actions_reach_criteria_in_units_of_the_action_scale(shards: str) -> None:
    module, batch = stage(), first_batch(shards)
    for weight in module.criteria["inverse_dynamics"].parameters():
        nn.init.zeros_(weight)
    terms, _ = module.terms(batch)
    assert torch.allclose(terms["inverse_dynamics"], (batch[0].actions / 2.45).square().mean())


@pytest.mark.parametrize(
    ("arguments", "levels", "message"),
    [
        (
            {"weights": {**WEIGHTS, "variants": 1.0}},
            None,
            r"stage.weights has .*'variants'.* give .*: name exactly these",
        ),
        ({"weights": {"prediction": 1.0}}, None, r"stage.weights has \['prediction'\], the criteria give"),
        ({}, [{"length": 5, "stride": 2}] * 2, r"2 steps apart.* give the first of data.levels stride 1"),
        ({"horizon": 5}, None, "horizon=5"),
    ],
)
def test_what_a_batch_must_fit(
    arguments: dict[str, Any], levels: Any, message: str, shards: str, tmp_path: Path
) -> None:
    given = {} if levels is None else {"levels": levels}
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(stage(**arguments), data(shards, **given))


class Spoilt(nn.Module):
    """A term that is made of the mean of all states, by another function from the fourth batch on."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.then, self.calls = then, 0

    def forward(self, batch: Encoded) -> dict[str, Tensor]:
        self.calls += 1
        mean = batch.states.mean()
        return {"fragile": mean if self.calls < 4 else self.then(mean)}


def test_an_energy_that_is_not_finite_is_named_and_the_last_good_checkpoint_stays(shards: str, tmp_path: Path) -> None:
    module = stage(weights={**WEIGHTS, "fragile": 1.0})
    module.criteria["spoilt"] = Spoilt(lambda mean: mean * torch.inf)
    fit = trainer(tmp_path, LastCheckpoint(str(tmp_path), 1), enable_checkpointing=True)
    with pytest.raises(ValueError, match=r"step 3: fragile is not finite.*resume=auto"):
        fit.fit(module, datamodule=data(shards))
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 3
    assert all(part.isfinite().all() for part in kept["state_dict"].values() if part.is_floating_point())


@pytest.mark.parametrize("steps", [1, 2])
def test_a_slope_that_is_not_finite_reaches_neither_weights_nor_checkpoint(
    steps: int, shards: str, tmp_path: Path
) -> None:
    """The square root of nothing: a finite term."""
    module = stage(weights={**WEIGHTS, "fragile": 1.0})
    module.criteria["spoilt"] = Spoilt(lambda mean: (0 * mean).abs().sqrt())
    fit = trainer(tmp_path, LastCheckpoint(str(tmp_path), steps), GradientAlarm(), enable_checkpointing=True)
    with pytest.raises(ValueError, match=r"step 3: the gradient of jepa.encoder.*resume=auto"):
        fit.fit(module, datamodule=data(shards))
    assert all(weight.isfinite().all() for weight in module.parameters())
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == (3 if steps == 1 else 2)
    assert all(part.isfinite().all() for part in kept["state_dict"].values() if part.is_floating_point())


def test_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    module = stage(warm_up=0.25)
    module.trainer = SimpleNamespace(estimated_stepping_batches=20)
    found = module.configure_optimizers()
    optimizer, schedule = found["optimizer"], found["lr_scheduler"]
    assert schedule["interval"] == "step"
    given = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    assert given == {id(weight) for weight in module.parameters()}
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"] / 1e-3)
        optimizer.step()
        schedule["scheduler"].step()
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[5:] == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 20)) for step in range(5, 20)])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)


def test_the_encoder_may_settle_before_what_predicts() -> None:
    """Its rate is at zero after that share of the steps, and those of all else are not."""
    module = stage(settled=0.5)
    module.trainer = SimpleNamespace(estimated_stepping_batches=20)
    found = module.configure_optimizers()
    encoder, others = found["optimizer"].param_groups
    assert {id(weight) for weight in encoder["params"]} == {id(weight) for weight in module.jepa.encoder.parameters()}
    assert len(encoder["params"]) + len(others["params"]) == len(list(module.parameters()))
    rates = []
    for _ in range(20):
        rates.append((encoder["lr"], others["lr"]))
        found["optimizer"].step()
        found["lr_scheduler"]["scheduler"].step()
    assert all(rate > 0 for rate, _ in rates[:10])
    assert all(rate == pytest.approx(0) and other > 0 for rate, other in rates[10:])
    with pytest.raises(ValueError, match=r"stage\.settled=0\.0"):
        stage(settled=0.0)
