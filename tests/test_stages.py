"""Pretraining: loss = sum_i weight_i term_i with gradients through both branches; its monitors, alarm and schedule; the
real stage fitted on real shards, resumed, and on two processes."""

from __future__ import annotations

import math
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from data_pipelines.collect import Collection
from data_pipelines.datamodule import EpisodeData
from data_pipelines.worlds.rooms import RoomsWorld, TwoRoomsLayouts
from data_pipelines.worlds.walks import VonMisesWalk
from lightning_jepa.callbacks.checkpoints import LastCheckpoint
from lightning_jepa.callbacks.collapse import CollapseAlarm
from lightning_jepa.perception.conv import ConvEncoder
from lightning_jepa.stages.jepa_pretraining import JEPAPretraining
from lightning_jepa.stages.monitors import LinearProbe, Spread
from lightning_jepa.types import Window
from lightning_jepa.world_model.convolutional import ConvPredictor
from lightning_jepa.world_model.criteria.inverse_dynamics import InverseDynamics, SpatialInverse
from lightning_jepa.world_model.criteria.temporal_contrast import TemporalContrast
from lightning_jepa.world_model.criteria.vicreg import VarianceCovariance
from lightning_jepa.world_model.jepa import JEPA
from lightning_jepa.world_model.metric import MetricSpace

SHAPE = (2, 9, 9)
SIZE = math.prod(SHAPE)
WEIGHTS = {"prediction": 2.0, "variance": 1.0, "covariance": 0.5, "inverse_dynamics": 1.0, "contrast": 0.1}
STEPS = 4  # in an epoch


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twelve short episodes to train on and five to validate."""
    root = tmp_path_factory.mktemp("shards")
    world = RoomsWorld(TwoRoomsLayouts(), episode_steps=24)
    policy = VonMisesWalk()
    Collection(world, policy, str(root), {"train": 12, "val": 5}, episodes_per_shard=6).run()
    return str(root)


def data(root: str, **arguments: Any) -> EpisodeData:
    levels = [{"length": 5, "stride": 1}, {"length": 4, "stride": 6}]
    return EpisodeData(
        root, **{"levels": levels, "batch_size": 4, "steps_per_epoch": STEPS, "val_windows_per_episode": 2, **arguments}
    )


def stage(seed: int = 0, **arguments: Any) -> JEPAPretraining:
    torch.manual_seed(seed)
    encoder, predictor = ConvEncoder(widths=[4], channels=SHAPE[0]), ConvPredictor(SHAPE, 2, hidden=4)
    criteria = {
        "vicreg": VarianceCovariance(state_shape=SHAPE),
        "inverse_dynamics": InverseDynamics(SpatialInverse(SHAPE, 2, hidden=4)),
    }
    geometry = TemporalContrast(MetricSpace(SIZE, size=3, hidden=8))
    given: dict[str, Any] = {"horizon": 4, "every": 4, "geometry": geometry, "weights": WEIGHTS, **arguments}
    jepa = JEPA(encoder, predictor, action_scale=2.45)
    return JEPAPretraining(jepa, criteria, optimizer=partial(torch.optim.AdamW, lr=1e-3), **given)


def trainer(folder: Path, *callbacks: L.Callback, **arguments: Any) -> L.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    settings: dict[str, Any] = {
        "max_epochs": 2,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "accelerator": "cpu",
    }
    return L.Trainer(
        **{**quiet, **settings, **arguments},
        default_root_dir=folder,
        callbacks=list(callbacks),
        use_distributed_sampler=False,
    )


def first_batch(root: str) -> tuple[Window, ...]:
    return next(iter(data(root).train_dataloader()))


# Monitors


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


# The geometry


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


def test_all_levels_teach_the_geometry(shards: str) -> None:
    """Its term is the mean of those of each level, at that level's stride."""
    module, batch = stage(), first_batch(shards)
    terms, states = module.terms(batch)
    coarse = module.geometry(module.jepa.encode(batch[1].observations), 6)["contrast"]
    assert torch.allclose(terms["contrast"], (module.geometry(states, 1)["contrast"] + coarse) / 2)


def test_what_the_geometry_refuses() -> None:
    with pytest.raises(ValueError, match="windows of 2 states: a contrast over time needs at least 3"):
        TemporalContrast(nn.Identity())(torch.randn(2, 2, 3), 1)
    with pytest.raises(ValueError, match=r"states of 7 numbers, .* for 8: set geometry.metric.state_size to 7"):
        MetricSpace(8)(torch.randn(2, 7))


def test_the_metric_is_the_geometrys_or_none() -> None:
    assert isinstance(stage().metric, MetricSpace)
    states = torch.randn(2, 3)
    assert stage(geometry=None).metric(states) is states


# The loss


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


# Fitting


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_healthy_fit(precision: str, shards: str, tmp_path: Path) -> None:
    module, episodes = stage(), data(shards)
    before = {name: weight.clone() for name, weight in module.named_parameters()}
    fitting = trainer(tmp_path, CollapseAlarm(patience=1), precision=precision)
    fitting.fit(module, episodes)
    assert fitting.global_step == 2 * STEPS
    assert all(not torch.equal(before[name], weight) for name, weight in module.named_parameters())
    logged = {name: float(value) for name, value in fitting.callback_metrics.items()}
    assert all(math.isfinite(value) for value in logged.values())
    total = sum(weight * logged[f"train/{name}"] for name, weight in WEIGHTS.items())
    assert logged["train/loss"] == pytest.approx(total, rel=1e-4)
    names = ("agent_x", "agent_y", "wall_x", "door_y")
    monitors = {"monitor/effective_rank", "monitor/smallest_std", "monitor/largest_std"}
    assert {f"probe/{name}_r2" for name in names} | monitors | {f"val/{name}" for name in WEIGHTS} <= logged.keys()
    # Pictures are standardised by what the manifest says of the training data.
    standardise = module.jepa.encoder.standardise
    mean, std = episodes.manifest.statistics()
    assert standardise.mean.tolist() == pytest.approx(mean.tolist())
    assert standardise.std.tolist() == pytest.approx(std.tolist())


def test_a_collapsed_fit_is_stopped(shards: str, tmp_path: Path) -> None:
    module = stage()
    for weight in module.jepa.encoder.network[-1].parameters():
        nn.init.zeros_(weight).requires_grad_(False)
    fitting = trainer(tmp_path, CollapseAlarm(), max_epochs=5)
    with pytest.raises(ValueError, match=r"the states have collapsed: effective rank 1\.00 .* callbacks.collapse=null"):
        fitting.fit(module, data(shards))
    assert fitting.current_epoch == 1  # after the second validation in a row


@pytest.mark.parametrize(
    ("measured", "alarms"),
    [([(9, 1), (1, 1), (9, 1), (1, 1)], False), ([(9, 1), (1, 1), (9, 1e-3)], True), ([(math.nan, 1)] * 2, True)],
)
def test_the_alarm_wants_bad_validations_in_a_row(measured: list[tuple[float, float]], alarms: bool) -> None:
    alarm, module = CollapseAlarm(), stage()
    told = False
    for rank, std in [(0.0, 0.0), *measured]:
        metrics = {"monitor/effective_rank": torch.tensor(rank), "monitor/largest_std": torch.tensor(std)}
        checked = SimpleNamespace(sanity_checking=rank == 0, callback_metrics=metrics)  # the check before training
        try:
            alarm.on_validation_end(checked, module)  # type: ignore[arg-type]  # all that it looks at
        except ValueError:
            told = True
    assert told == alarms


def test_padding_does_not_count(shards: str, tmp_path: Path) -> None:
    """Ten windows in batches of four: the last batch has two rows of padding. val/prediction is the mean of the ten."""
    module, episodes = stage(), data(shards)
    validated = trainer(tmp_path)
    validated.validate(module, episodes, verbose=False)
    real = [Window(*(part[batch[0].mask] for part in batch[0])) for batch in episodes.val_dataloader()]
    windows = Window(*(torch.cat(parts) for parts in zip(*real, strict=True)))
    assert len(windows.mask) == 10
    with torch.no_grad():
        states = module.jepa.encode(windows.observations)
        expected = module.jepa.energy(states, windows.actions[:, :, 0], 4, 4).mean()
    assert torch.allclose(validated.callback_metrics["val/prediction"], expected)


def test_a_batch_of_padding_weighs_nothing(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, logged = stage(), {}
    module.probe = LinearProbe("abcd")
    monkeypatch.setattr(module, "log_dict", lambda terms, **how: logged.update(how))
    batch = tuple(window._replace(mask=torch.zeros(4, dtype=torch.bool)) for window in first_batch(shards))
    module.validation_step(batch, 0)
    assert logged == {"batch_size": 0, "on_epoch": True, "sync_dist": True}
    assert module.spread.count == 0
    assert sum(map(len, module.probe.states)) == 0


@pytest.mark.parametrize("written", [STEPS, STEPS // 2 + STEPS])
def test_resuming_is_bit_equal(written: int, shards: str, tmp_path: Path) -> None:
    """N steps == k steps, written at the end or in the middle of an epoch, killed, resumed, N - k steps."""

    class Killed(L.Callback):
        def on_train_batch_start(
            self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            if trainer.global_step == written + 1:
                raise KeyError("killed")

    whole, cut, resumed = (LastCheckpoint(str(tmp_path / name), written) for name in ("whole", "cut", "resumed"))
    trainer(tmp_path, whole, enable_checkpointing=True).fit(stage(), data(shards))
    with pytest.raises(KeyError):
        trainer(tmp_path, cut, Killed(), enable_checkpointing=True).fit(stage(), data(shards))
    again = trainer(tmp_path, resumed, enable_checkpointing=True)
    again.fit(stage(seed=1), data(shards), ckpt_path=cut.path, weights_only=True)
    assert again.global_step == 2 * STEPS
    one, two = (torch.load(part.path, weights_only=True) for part in (whole, resumed))
    assert one["state_dict"].keys() == two["state_dict"].keys()
    assert all(torch.equal(one["state_dict"][name], two["state_dict"][name]) for name in one["state_dict"])
    assert one["lr_schedulers"] == two["lr_schedulers"]
    moments = [[*state["state"].values()] for (state,) in (one["optimizer_states"], two["optimizer_states"])]
    assert all(torch.equal(a[key], b[key]) for a, b in zip(*moments, strict=True) for key in a)


def gathered(value: Tensor) -> list[Tensor]:
    """The value on every rank."""
    ranks = [torch.empty_like(value) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(ranks, value)
    return ranks


class SameWeights(L.Callback):
    """Checks on each rank that all ranks saw other episodes, and end with the same weights and monitors."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ranks = gathered(batch[0].truth[:, 0].sum(0))
        assert not torch.equal(ranks[0], ranks[1])

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert (trainer.world_size, trainer.global_step) == (2, 2 * STEPS)
        weights = torch.cat([weight.detach().flatten() for weight in pl_module.parameters()])
        told = torch.stack([trainer.callback_metrics[name] for name in ("val/prediction", "probe/agent_x_r2")])
        for values in (weights, told):
            ranks = gathered(values)
            assert torch.equal(ranks[0], ranks[1])


@pytest.mark.distributed
def test_two_processes_end_with_equal_weights(shards: str, tmp_path: Path) -> None:
    """Ten windows in one batch of twelve: the second process validates nothing but padding, and must not hang."""
    strategy = DDPStrategy(start_method="spawn", process_group_backend="gloo", timeout=timedelta(minutes=2))
    fitting = trainer(tmp_path, SameWeights(), devices=2, strategy=strategy)
    module = stage()
    before = {name: weight.clone() for name, weight in module.named_parameters()}
    fitting.fit(module, data(shards, batch_size=12))  # fails if one of the processes does
    assert all(not torch.equal(before[name], weight) for name, weight in module.named_parameters())
