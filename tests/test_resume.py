"""Exact resume: the windows of a run that was stopped anywhere and resumed are those of one that never was."""

from __future__ import annotations

from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from clocks import UNEVEN, data, taken, write
from lightning.pytorch.strategies import DDPStrategy

from lightning_jepa.types import Window

N = 5  # batches in an epoch
EPOCHS = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clocks")
    write(folder, UNEVEN)
    return folder


class Recorder(L.LightningModule):
    """Remembers what it was fed; may ask for the number of steps, as schedules do, and may die in a step."""

    def __init__(self, asks: bool = False, dies: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.asks, self.dies, self.seen = asks, dies, list[list[tuple[int, int]]]()

    def training_step(self, batch: tuple[Window, ...], index: int) -> torch.Tensor:
        if len(self.seen) == self.dies:
            raise RuntimeError("killed")
        self.seen.append(taken([batch]))
        return self.weight**2

    def validation_step(self, batch: tuple[Window, ...], index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.asks:
            assert self.trainer.estimated_stepping_batches
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def fit(
    root: Path,
    folder: Path,
    model: Recorder,
    *callbacks: L.Callback,
    resume: str | None = None,
    stream: dict[str, Any] | None = None,
    **arguments: Any,
) -> Recorder:
    settings: dict[str, Any] = {"max_epochs": EPOCHS, "num_sanity_val_steps": 0, "devices": 1, **arguments}
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(**quiet, **settings, accelerator="cpu", callbacks=list(callbacks), default_root_dir=folder)
    trainer.fit(model, data(root, steps_per_epoch=N, **(stream or {})), ckpt_path=resume, weights_only=True)
    return model


class Saver(L.Callback):
    """Writes a checkpoint after every optimizer step, where ModelCheckpoint does; it has no state to be missed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.step = folder, 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self.step:
            self.step = trainer.global_step
            trainer.save_checkpoint(self.folder / f"step={self.step}.ckpt")


class Rescue(L.Callback):
    """Writes a checkpoint when a step fails."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        trainer.save_checkpoint(self.path)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "estimated_stepping_batches": {"asks": True},
    "val_check_interval": {"val_check_interval": 2},
    "sanity": {"num_sanity_val_steps": 2},
    "limit_train_batches": {"limit_train_batches": 3},
    "accumulate": {"accumulate_grad_batches": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("case", CASES)
def test_a_run_resumed_from_any_step_goes_on_with_the_next_window(
    case: str, workers: int, root: Path, tmp_path: Path
) -> None:
    arguments = dict(CASES[case])
    asks, stream = bool(arguments.pop("asks", False)), {"workers": workers}
    whole = fit(root, tmp_path, Recorder(asks), Saver(tmp_path), stream=stream, **arguments).seen
    each = {"limit_train_batches": 3}.get(case, N)
    assert len(whole) == EPOCHS * each
    flat = [row for batch in whole for row in batch]
    assert case == "limit_train_batches" or len(flat) == len(set(flat))  # one pass has more windows than three epochs
    for checkpoint in sorted(tmp_path.glob("step=*.ckpt")):
        step = int(checkpoint.stem.removeprefix("step="))
        per_epoch = -(-each // arguments.get("accumulate_grad_batches", 1))
        epochs, steps = divmod(step, per_epoch)
        done = epochs * each + steps * arguments.get("accumulate_grad_batches", 1)
        if workers and step not in (1, per_epoch - 1, per_epoch, per_epoch + 1):
            continue
        resumed = fit(root, tmp_path, Recorder(asks), resume=str(checkpoint), stream=stream, **arguments).seen
        assert resumed == whole[done:], f"from step {step}"


@pytest.mark.slow
@pytest.mark.parametrize("dies", [1, 2, N - 1, N, N + 2])
def test_a_batch_whose_step_failed_comes_again(dies: int, root: Path, tmp_path: Path) -> None:
    whole = fit(root, tmp_path, Recorder()).seen
    with pytest.raises(RuntimeError, match="killed"):
        fit(root, tmp_path, Recorder(dies=dies), Rescue(tmp_path / "rescue.ckpt"))
    resumed = fit(root, tmp_path, Recorder(), resume=str(tmp_path / "rescue.ckpt"))
    assert resumed.seen == whole[dies:]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 1), (2, 0)])
def test_another_number_of_workers_goes_on_alike(before: int, after: int, root: Path, tmp_path: Path) -> None:
    whole = fit(root, tmp_path, Recorder(), Saver(tmp_path), stream={"workers": before}).seen
    resumed = fit(root, tmp_path, Recorder(), resume=str(tmp_path / "step=3.ckpt"), stream={"workers": after}).seen
    assert resumed == whole[3:]


class _Shared(Recorder):
    """Gathers what all ranks were fed, in the order of the ranks, on the first."""

    def on_train_end(self) -> None:
        parts: list[Any] = [None] * self.trainer.world_size
        if self.trainer.world_size > 1:
            torch.distributed.all_gather_object(parts, self.seen)
            self.seen = [[*chain(*batch)] for batch in zip(*parts, strict=True)]
        if self.trainer.is_global_zero:
            torch.save(self.seen, Path(self.trainer.default_root_dir) / "seen.pt")


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_share_the_batches_of_one_and_resume_as_one_or_two(root: Path, tmp_path: Path) -> None:
    strategy = {
        "strategy": DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=60)),
        "devices": 2,
    }
    half = {"batch_size": 4}  # for each of two ranks
    whole = fit(root, tmp_path, Recorder()).seen
    fit(root, tmp_path, _Shared(), Saver(tmp_path), stream=half, **strategy)
    assert torch.load(tmp_path / "seen.pt") == whole
    alone = fit(root, tmp_path, Recorder(), resume=str(tmp_path / "step=3.ckpt")).seen
    assert alone == whole[3:]
    strategy["strategy"] = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=60))
    fit(root, tmp_path, _Shared(), resume=str(tmp_path / "step=3.ckpt"), stream=half, **strategy)
    assert torch.load(tmp_path / "seen.pt") == whole[3:]


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ({"seed": 3}, "its seed was 0, here it is 3"),
        ({"batch_size": 4}, "its global_batch was 8, here it is 4"),
        ({"block_shards": 2}, "its block_shards was None, here it is 2"),
        ({"levels": [{"length": 3, "stride": 1}]}, r"its levels was \[\[5, 1\], \[4, 6\]\], here it is \[\[3, 1\]\]"),
    ],
)
def test_another_stream_is_refused(stream: dict[str, Any], message: str, root: Path) -> None:
    module = data(root)
    module.train_dataloader()
    other = data(root, **stream)
    other.load_state_dict(module.state_dict())
    with pytest.raises(ValueError, match=rf"in another stream: {message}. Resume with the same .*init_from"):
        other.train_dataloader()


def test_other_data_are_refused(root: Path, tmp_path: Path) -> None:
    write(tmp_path, UNEVEN[1:])
    module, other = data(root), data(tmp_path)
    module.train_dataloader()
    other.load_state_dict(module.state_dict())
    with pytest.raises(ValueError, match="its data was [0-9a-f]{64}, here it is [0-9a-f]{64}"):
        other.train_dataloader()


def test_a_module_that_never_streamed_has_no_place(root: Path) -> None:
    module = data(root)
    assert module.state_dict() == {}
    module.load_state_dict({})
    assert module.train_dataloader().next == 0
