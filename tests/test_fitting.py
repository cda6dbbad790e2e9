"""Pretraining fitted on real shards: healthy, collapsed, resumed, on two processes."""

from __future__ import annotations

import math
import shutil
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from pretraining import STEPS, WEIGHTS, collect_shards, data, first_batch, stage, trainer
from torch import Tensor, nn

from lightning_jepa.callbacks.checkpoints import LastCheckpoint
from lightning_jepa.callbacks.collapse import CollapseAlarm
from lightning_jepa.callbacks.curves import Curves
from lightning_jepa.callbacks.data_watch import DataWatch
from lightning_jepa.stages.jepa_pretraining import JEPAPretraining
from lightning_jepa.stages.monitors import LinearProbe
from lightning_jepa.types import Window
from lightning_jepa.world_model.criteria.contrastive import InfoNCE, MarginHinge
from lightning_jepa.world_model.target import SlowEncoder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return collect_shards(tmp_path_factory.mktemp("shards"))


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


def test_waiting_and_skipping_are_logged(shards: str, tmp_path: Path) -> None:
    module, episodes = stage(), data(shards)
    fitting = trainer(tmp_path, DataWatch())
    fitting.fit(module, episodes)
    assert 0 < float(fitting.callback_metrics["data/wait_share"]) < 1
    assert float(fitting.callback_metrics["data/skipped"]) == 0
    assert episodes.stream is not None
    assert episodes.stream.waited > 0


def test_what_is_skipped_is_logged(shards: str, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(shards, damaged)
    shard = min((damaged / "train").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[600] ^= 1  # a byte of the first episode's first member
    shard.write_bytes(content)
    episodes = data(str(damaged), on_damage="skip", skip_limit=1.0)
    fitting = trainer(tmp_path, DataWatch())
    fitting.fit(stage(), episodes)
    assert episodes.stream is not None
    assert float(fitting.callback_metrics["data/skipped"]) == episodes.stream.skipped > 0


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
            alarm.on_validation_end(checked, module)  # stand-ins: all that it looks at
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
        expected = module.jepa.predictions(states, windows.actions[:, :, 0], states, 4, 4)[1]["prediction"].mean()
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


def test_what_changes_in_an_episode_tells_no_layouts_apart(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A light that goes on and off, in the truth beside what a layout is: probes are tested on other layouts still."""
    module, whole = stage(), first_batch(shards)
    light = torch.rand(*whole[0].truth.shape[:2], 1)
    windows = (whole[0]._replace(truth=torch.cat([whole[0].truth, light], -1)), *whole[1:])
    module.probe = LinearProbe(("agent_x", "agent_y", "wall_x", "door_y", "light"))
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    module.validation_step(windows, 0)
    groups, factors = module.probe.groups[0], module.probe.factors[0]
    assert groups[:, [0, 1, 4]].abs().max() == 0
    assert torch.equal(groups[:, 2:4], factors[:, 2:4])


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


@pytest.mark.parametrize("every", [STEPS, 2 * STEPS, STEPS - 1, 3])
def test_a_run_that_is_killed_often_takes_as_many_steps_and_validates_each_epoch(
    every: int, shards: str, tmp_path: Path
) -> None:
    """Wherever checkpoints lie, and at the end too, where there is nothing left to do."""

    class KilledAfter(L.Callback):
        def __init__(self, steps: int) -> None:
            self.left = steps

        def on_train_batch_start(
            self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            self.left -= 1
            if self.left < 0:
                raise KeyError("killed")

    resume, epochs = None, 5
    for steps in (2 * STEPS + 1, 2 * STEPS, 100, 100, 100):
        curves, last = Curves(), LastCheckpoint(str(tmp_path), every)
        fit = trainer(tmp_path, curves, last, KilledAfter(steps), max_epochs=epochs, enable_checkpointing=True)
        try:
            fit.fit(stage(), data(shards), ckpt_path=resume, weights_only=True)
        except KeyError:
            assert steps < 100
        resume = last.path
    assert fit.global_step == epochs * STEPS
    kept = torch.load(last.path, weights_only=True)
    assert kept["global_step"] == epochs * STEPS
    seen = [step for step, _ in curves.curves["monitor/effective_rank"]]
    assert seen == [STEPS * epoch for epoch in range(1, epochs + 1)]


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

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """A process that ends while threads of its group run is aborted now and then, on a busy machine."""
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def contrastive() -> JEPAPretraining:
    names = {"prediction": 1.0, "nce": 1.0, "hinge": 1.0}
    return stage(criteria={"infonce": InfoNCE(over="batch"), "hinge": MarginHinge()}, weights=names, geometry=None)


def test_a_last_window_alone_has_something_to_contrast_with(shards: str, tmp_path: Path) -> None:
    """Five windows in batches of four: validation goes through, in which the last window stands beside its copies."""
    fitting = trainer(tmp_path)
    fitting.fit(contrastive(), data(shards, val_windows_per_episode=1))
    assert math.isfinite(fitting.callback_metrics["val/hinge"])


def test_a_slow_encoder_follows_in_each_step(shards: str, tmp_path: Path) -> None:
    """With a decay of 0 it ends as the encoder does; with one of 0.99 it lies between where both began and there."""
    for decay in (0.0, 0.99):
        module = stage(target=partial(SlowEncoder, decay=decay))
        assert module.target is not None
        begin = [weight.clone() for weight in module.target.encoder.parameters()]
        trainer(tmp_path).fit(module, data(shards))
        for first, slow, fast in zip(
            begin, module.target.encoder.parameters(), module.jepa.encoder.parameters(), strict=True
        ):
            if decay:
                moved = (slow - first).norm() / (fast - first).norm()
                assert 0 < moved < 0.1
            else:
                assert torch.equal(slow, fast)


@pytest.mark.distributed
@pytest.mark.parametrize(("make", "batch_size"), [(stage, 12), (contrastive, 4)])
def test_two_processes_end_with_equal_weights(make: Any, batch_size: int, shards: str, tmp_path: Path) -> None:
    """Ten windows in one batch of twelve: the second process validates nothing but padding, and must not hang.

    In batches of four: at the end the first process has two windows more, and the second none.
    """
    strategy = DDPStrategy(start_method="spawn", process_group_backend="gloo", timeout=timedelta(minutes=2))
    fitting = trainer(tmp_path, SameWeights(), devices=2, strategy=strategy)
    module = make()
    before = {name: weight.clone() for name, weight in module.named_parameters()}
    fitting.fit(module, data(shards, batch_size=batch_size))  # fails if one of the processes does
    assert all(not torch.equal(before[name], weight) for name, weight in module.named_parameters())
