"""A checkpoint rebuilds its module; N steps equal k steps, a resume and N - k steps, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny
import torch

from lightning_jepa import checkpoint
from lightning_jepa.callbacks.checkpoints import LastCheckpoint
from lightning_jepa.callbacks.curves import Curves
from lightning_jepa.callbacks.training_cost import TrainingCost
from lightning_jepa.types import Training

CONFIG = {"name": "tiny", "seed": 0, "stage": {"_target_": "tiny.TinyStage", "size": 3, "lr": 0.1}}
pytestmark = pytest.mark.usefixtures("trust_tiny")


def trained(folder: Path, steps: int, resume: Path | None = None, every: int = 100, size: int = 3) -> tuple[Any, Any]:
    """A stage after `steps` optimizer steps in all, 4 to an epoch, and its trainer."""
    torch.manual_seed(0)
    stage = tiny.TinyStage(size, lr=0.1)
    last = LastCheckpoint(str(folder / "checkpoints"), every_n_steps=every)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        callbacks=[last, TrainingCost(), Curves(), checkpoint.EmbedConfig(CONFIG, "run7", {})],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(stage, tiny.Windows(4), tiny.Windows(1), ckpt_path=resume, weights_only=True)
    return stage, trainer


@pytest.mark.parametrize("k", [3, 4, 6])  # in the middle of an epoch, at its end, in the next one
def test_resuming_changes_nothing(tmp_path: Path, k: int) -> None:
    whole, trainer = trained(tmp_path / "whole", 10)
    trained(tmp_path / "parts", k)
    parts, resumed = trained(tmp_path / "parts", 10, resume=tmp_path / "parts" / checkpoint.LAST)
    assert trainer.global_step == resumed.global_step == 10
    for name, weights in whole.state_dict().items():
        assert torch.equal(weights, parts.state_dict()[name])
    first, second = trainer.optimizers[0].state_dict()["state"], resumed.optimizers[0].state_dict()["state"]
    assert all(torch.equal(first[i][key], second[i][key]) for i in first for key in first[i])


def test_a_killed_run_resumes_from_its_last_periodic_write(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    whole, _ = trained(tmp_path / "whole", 10)
    stop, step = tiny.TinyStage.training_step, iter(range(100))

    def dying(self: Any, batch: Any, index: int) -> Any:
        if next(step) == 5:
            raise Killed
        return stop(self, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny.TinyStage, "training_step", dying)
        with pytest.raises(Killed):
            trained(tmp_path / "parts", 10, every=2)
    last = tmp_path / "parts" / checkpoint.LAST
    assert checkpoint.read(last)["global_step"] == 4
    parts, _ = trained(tmp_path / "parts", 10, resume=last)
    assert all(torch.equal(whole.state_dict()[name], weights) for name, weights in parts.state_dict().items())
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt"]


def test_a_stage_is_rebuilt_from_its_checkpoint(tmp_path: Path) -> None:
    stage, _ = trained(tmp_path, 2)
    again = checkpoint.load_stage(tmp_path / checkpoint.LAST)
    assert isinstance(again, tiny.TinyStage)
    assert not again.training
    assert all(torch.equal(stage.state_dict()[name], weights) for name, weights in again.state_dict().items())
    assert checkpoint.read(tmp_path / checkpoint.LAST)["run_id"] == "run7"


def test_training_cost_adds_up_over_stages() -> None:
    def of(stage: str, seconds: float, before: dict[str, float]) -> dict[str, float]:
        counted = {"TrainingCost": {"train_seconds": seconds, "train_frames": 100, "train_transitions": 50}}
        content = {"config": {"train": stage}, "callbacks": counted, "cost_before": before}
        return checkpoint.training_cost(content)

    below = of("pretrain", 10.0, {})
    assert below == {"train_seconds": 10, "train_frames": 100, "train_transitions": 50}
    assert of("critic", 3.0, below) == {**below, "critic_seconds": 3}
    assert of("distill", 4.0, of("distill", 2.0, below)) == {**below, "distill_seconds": 6}
    assert checkpoint.training_cost({"config": {}}) == {}


def test_training_cost_adds_up_over_a_resume(tmp_path: Path) -> None:
    trained(tmp_path, 3)
    first = checkpoint.training_cost(checkpoint.read(tmp_path / checkpoint.LAST))
    assert first["train_frames"] == 3 * 4 * 2  # steps, windows in a batch, frames in a window
    trained(tmp_path, 5, resume=tmp_path / checkpoint.LAST)
    second = checkpoint.training_cost(checkpoint.read(tmp_path / checkpoint.LAST))
    assert second["train_frames"] == 5 * 4 * 2
    assert second["train_seconds"] > first["train_seconds"] > 0


def test_a_run_that_finds_all_done_costs_nothing() -> None:
    cost, trainer = TrainingCost(), L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    stage = tiny.TinyStage(3, lr=0.1)
    cost.load_state_dict({"train_seconds": 7.0, "train_frames": 8, "train_transitions": 0})
    cost.on_train_start(trainer, stage)
    cost.on_train_end(trainer, stage)
    assert cost.state_dict()["train_seconds"] == 7


def test_curves_are_kept_over_a_resume(tmp_path: Path) -> None:
    trained(tmp_path, 8)
    trained(tmp_path, 12, resume=tmp_path / checkpoint.LAST)
    curves = checkpoint.training(checkpoint.read(tmp_path / checkpoint.LAST)).curves
    assert curves == {"monitor/step": [[4, 4.0], [8, 8.0], [12, 12.0]]}
    assert checkpoint.training({"config": {}}) == Training()


def test_another_architecture_names_what_differs(tmp_path: Path) -> None:
    trained(tmp_path, 1, size=5)  # while CONFIG says 3
    with pytest.raises(
        ValueError, match=r"another architecture: map.weight has shape \[5, 3\], expected \[3, 3\]; map.bias"
    ):
        checkpoint.load_stage(tmp_path / checkpoint.LAST)


def test_missing_and_unknown_weights_are_named_and_nothing_is_loaded() -> None:
    module = torch.nn.Linear(2, 2)
    before = module.weight.clone()
    weights = {"weight": torch.zeros(2, 2), **{f"extra{i}": torch.zeros(1) for i in range(6)}}
    with pytest.raises(ValueError, match="bias is missing; extra0 is unknown here; .* and 2 more"):
        checkpoint.load_weights(module, weights, "x.ckpt")
    assert torch.equal(module.weight, before)


def test_a_checkpoint_from_elsewhere_cannot_build_foreign_code(tmp_path: Path) -> None:
    bad = {"config": {"stage": {"_target_": "os.system", "command": "true"}}, "state_dict": {}}
    torch.save(bad, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match="'os.system' may not be built"):
        checkpoint.load_stage(tmp_path / "bad.ckpt")


class Pickled:
    pass


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", Pickled(), {"state_dict": {}}, [1, 2]])
def test_a_file_that_is_no_checkpoint_is_a_users_error(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "x.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"x.ckpt (is not a readable checkpoint|holds no configuration)"):
        checkpoint.read(path)


def test_a_truncated_checkpoint_is_a_users_error(tmp_path: Path) -> None:
    trained(tmp_path, 1)
    path = tmp_path / checkpoint.LAST
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        checkpoint.read(path)


def test_where_to_resume_from(tmp_path: Path) -> None:
    assert checkpoint.resume_path(None, tmp_path) is None
    assert checkpoint.resume_path("auto", tmp_path) is None
    last = tmp_path / checkpoint.LAST
    last.parent.mkdir()
    last.write_text("")
    assert checkpoint.resume_path("auto", tmp_path) == last
    assert checkpoint.resume_path(str(last), "elsewhere") == last
    with pytest.raises(ValueError, match="there is no checkpoint nowhere.ckpt"):
        checkpoint.resume_path("nowhere.ckpt", tmp_path)
