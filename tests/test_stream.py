"""The stream: o[k] = x[t0 + k s] with the actions a[t0 + k s : t0 + (k + 1) s] between them; a batch is a function of
its number; validation takes every window exactly once."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import psutil
import pytest
import torch
from clocks import COARSE, DENSE, STEPS, UNEVEN, data, exactly, fingerprint, taken, write

from data_pipelines.episodes import EpisodeFolder
from data_pipelines.schema import Manifest
from lightning_jepa.types import Window


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven episodes in three uneven shards, not all of the same length."""
    folder = tmp_path_factory.mktemp("clocks")
    write(folder, UNEVEN)
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_frames_are_stride_apart_and_actions_lead_from_each_to_the_next(root: Path, workers: int) -> None:
    for batch in data(root, workers=workers).train_dataloader():
        exactly(batch, (DENSE, COARSE))
        assert batch[0].observations.shape == (8, 5, 3, 4, 5)
        assert batch[0].mask.all()
        dense, coarse = batch[0].times, batch[1].times
        assert ((coarse[:, 0] <= dense[:, 0]) & (dense[:, -1] <= coarse[:, -1])).all()  # one moment on both levels


def test_windows_start_anywhere_up_to_the_last_possible_place(root: Path) -> None:
    starts = taken(data(root, steps_per_epoch=None).train_dataloader())
    assert len(starts) == len(set(starts)) == 366 // 8 * 8  # what does not fill a batch is left for the next epoch
    starts = taken(data(root, steps_per_epoch=60).train_dataloader())
    assert {time for number, time in starts if number == 0} == set(range(STEPS - 4 + 1))
    assert {time for number, time in starts if number == 8} == set(range(24 - 4 + 1))


def test_epochs_have_the_asked_steps_a_new_order_and_repeat_with_the_seed(root: Path) -> None:
    batches = data(root).train_dataloader()
    assert len(batches) == 5
    first, second = list(batches), list(batches)
    assert len(first) == len(second) == 5
    assert fingerprint(first) != fingerprint(second)
    again = data(root).train_dataloader()
    assert [fingerprint(list(again)) for _ in range(2)] == [fingerprint(first), fingerprint(second)]
    assert fingerprint(list(data(root, seed=1).train_dataloader())) != fingerprint(first)


@pytest.mark.parametrize(("workers", "method"), [(1, "fork"), (2, "fork"), (2, "spawn"), (2, "forkserver")])
def test_workers_change_neither_order_nor_length(root: Path, workers: int, method: str) -> None:
    alone, shared = (data(root, workers=count, start_method=method).train_dataloader() for count in (0, workers))
    for _ in range(2):
        assert fingerprint(shared) == fingerprint(alone)
    validated = data(root, workers=workers, start_method=method).val_dataloader()
    assert fingerprint(validated) == fingerprint(data(root).val_dataloader())


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_kept_of_a_batch_stays_as_it_is_while_others_come(root: Path, workers: int) -> None:
    """Memory is used again, but not while any tensor lies in it."""
    expected = list(data(root, steps_per_epoch=30).train_dataloader())
    kept = list(data(root, workers=workers, steps_per_epoch=30).train_dataloader())
    assert len({batch[0].observations.data_ptr() for batch in kept}) == 30
    assert fingerprint(kept) == fingerprint(expected)
    parts = [
        (
            batch[0].observations[3].float().requires_grad_() if number % 2 else batch[1].observations[3:5],
            batch[1].truth,
        )
        for number, batch in enumerate(data(root, workers=workers, steps_per_epoch=30).train_dataloader())
    ]
    for number, (pictures, truth) in enumerate(parts):
        window = expected[number]
        assert torch.equal(pictures.detach(), window[0].observations[3] if number % 2 else window[1].observations[3:5])
        assert torch.equal(truth, window[1].truth)


@pytest.mark.parametrize(("workers", "most"), [(0, 2), (1, 5)])
def test_memory_of_batches_that_nobody_keeps_is_used_again(root: Path, workers: int, most: int) -> None:
    batches = data(root, workers=workers, steps_per_epoch=100).train_dataloader()
    assert len({batch[0].observations.data_ptr() for batch in batches}) <= most


def test_the_memory_of_workers_does_not_grow(root: Path) -> None:
    others = set(psutil.Process().children())
    batches = data(root, workers=2, steps_per_epoch=50).train_dataloader()
    grown = []
    for epoch in range(10):
        for _ in batches:
            pass
        if epoch in (1, 9):
            workers = set(psutil.Process().children()) - others
            grown.append(sum(worker.memory_info().rss for worker in workers))
    batches.close()
    assert grown[1] - grown[0] < 2**19  # a fifth of what was cut in between


def test_a_walk_that_was_left_early_is_forgotten_by_workers(root: Path) -> None:
    module = data(root, workers=2)
    batches = module.train_dataloader()
    next(iter(batches))
    assert fingerprint(batches) == fingerprint(list(data(root, steps_per_epoch=10).train_dataloader())[5:])


def test_a_worker_that_is_killed_ends_the_walk_and_the_next_one_has_others(root: Path) -> None:
    batches = data(root, workers=2, steps_per_epoch=50).train_dataloader()
    others = set(psutil.Process().children())
    walk = iter(batches)
    next(walk)
    worker, other = set(psutil.Process().children()) - others
    worker.kill()
    with pytest.raises(RuntimeError, match="reads data ended with exit code -9: it was killed, perhaps for lack of me"):
        for _ in walk:
            pass
    assert not other.is_running()
    assert fingerprint(batches) == fingerprint(list(data(root, steps_per_epoch=100).train_dataloader())[50:])


TRAINING = """
import sys
from clocks import data
batches = data(sys.argv[1], workers=2, start_method=sys.argv[2]).train_dataloader()
if __name__ == "__main__":
    next(iter(batches))
    print("reading", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_end_when_the_main_process_is_killed(
    root: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "training.py").write_text(TRAINING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    command = [sys.executable, str(tmp_path / "training.py"), str(root), method]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as main:
        assert main.stdout is not None
        assert main.stdout.readline() == b"reading\n"
        workers = psutil.Process(main.pid).children(recursive=True)
        main.kill()
    assert len(workers) >= 2
    _, left = psutil.wait_procs(workers, timeout=30)
    assert left == []


@pytest.mark.parametrize("each", [3, None])
def test_validation_batches_are_the_same_each_time_and_mask_the_padding(root: Path, each: int | None) -> None:
    batches = data(root, val_windows_per_episode=each).val_dataloader()
    once = list(batches)
    assert fingerprint(once) == fingerprint(batches)
    windows = taken(once)
    assert len(windows) == len(set(windows)) == (33 if each else 366)
    assert {len(batch[0].mask) for batch in once} == {8}
    for batch in once:
        exactly(batch, (DENSE, COARSE))


def test_episodes_too_short_for_a_level_can_be_left_out(root: Path) -> None:
    long = {"length": 2, "stride": 31}
    with pytest.raises(ValueError, match=r"spans 31 steps, but an episode in .* has only 24.*short_episodes=drop"):
        data(root, levels=[DENSE, long]).setup("fit")
    kept = data(root, levels=[DENSE, long], short_episodes="drop", val_windows_per_episode=None)
    numbers = {number for number, _ in taken(kept.val_dataloader())}
    assert numbers == {0, 1, 2, 3, 4, 7, 9, 10}
    assert {number for number, _ in taken(kept.train_dataloader())} <= numbers
    with pytest.raises(ValueError, match="spans 41 steps"):
        data(root, levels=[{"length": 2, "stride": 41}], short_episodes="drop").setup("fit")


class Recorder(L.LightningModule):
    """Fits one number and remembers what it was fed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[Window, ...]] = []
        self.validated = 0

    def training_step(self, batch: tuple[Window, ...], index: int) -> torch.Tensor:
        assert isinstance(batch[0], Window)
        assert batch[0].observations.dtype == torch.uint8
        self.seen.append(batch)
        return (self.weight - batch[0].observations.float().mean()) ** 2

    def validation_step(self, batch: tuple[Window, ...], index: int) -> None:
        self.validated += int(batch[0].mask.sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def test_lightning_takes_the_asked_steps_and_a_new_epoch_each_time(root: Path, tmp_path: Path) -> None:
    model, module = Recorder(), data(root)
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        trainer.fit(model, module)
    assert trainer.num_training_batches == 5
    assert trainer.global_step == 10
    assert model.validated == 2 * 11 * 4
    stream = data(root).train_dataloader()
    assert fingerprint(model.seen) == fingerprint([*stream, *stream])


def test_manifest_and_statistics_are_those_of_training(root: Path) -> None:
    module = data(root)
    mean, std = module.statistics
    assert module.manifest == Manifest.load(root / "train")
    pixels = np.concatenate([episode.observations for episode in EpisodeFolder(root / "train")]) / 255.0
    assert torch.allclose(mean, torch.from_numpy(pixels.mean((0, 2, 3))).float())
    assert torch.allclose(std, torch.from_numpy(pixels.std((0, 2, 3))).float())


def test_a_channel_that_never_changes_can_be_standardised(tmp_path: Path) -> None:
    write(tmp_path, [[STEPS]])
    assert data(tmp_path, levels=[DENSE]).statistics[1][0] == 1


def test_a_module_can_be_sent_to_another_process(root: Path) -> None:
    module = data(root)
    first = fingerprint(list(module.train_dataloader()))  # shards are mapped now
    assert fingerprint(list(pickle.loads(pickle.dumps(module)).train_dataloader())) == first


def test_episodes_are_numbered_through_the_shards(root: Path) -> None:
    folder = EpisodeFolder(root / "train")
    assert [int(episode.truth[0, 0]) for episode in folder] == list(range(11))
    with pytest.raises(IndexError):
        folder[-1]


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_missing_and_empty_folders_are_found_in_setup(root: Path, tmp_path: Path, stage: str) -> None:
    data(root).setup(stage)
    with pytest.raises(ValueError, match=r"the folder of episodes .*nowhere.* is missing. Run the collection"):
        data(tmp_path / "nowhere").setup(stage)
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match=r"no manifest.json: the collection was interrupted or never ran"):
        data(tmp_path).setup(stage)


def test_another_image_size_is_found_in_setup(root: Path) -> None:
    data(root, observation_shape=[3, 4, 5]).setup("fit")
    with pytest.raises(ValueError, match=r"have images \(3, 4, 5\) .* expects \(2, 65, 65\).*resolution"):
        data(root, observation_shape=[2, 65, 65]).setup("fit")


def test_a_window_longer_than_an_episode_is_found_in_setup(root: Path) -> None:
    data(root, levels=[{"length": 5, "stride": 6}]).setup("fit")  # 24 steps, as the shortest episode
    with pytest.raises(ValueError, match=r"length 6 and stride 5 spans 25 steps, but an episode in .* has only 24"):
        data(root, levels=[{"length": 6, "stride": 5}]).setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": []}, "at least one, of length >= 1"),
        ({"levels": [{"length": 0, "stride": 1}]}, "length >= 1"),
        ({"levels": [{"length": 3, "stride": 0}]}, "stride >= 1"),
        ({"batch_size": 0}, "batch_size=0: give at least 1"),
        ({"steps_per_epoch": 0}, "steps_per_epoch=0"),
        ({"workers": -1}, r"workers=-1: give at least 0"),
        ({"block_shards": 0}, "block_shards=0: give at least 1"),
        ({"on_damage": "ignore"}, r"on_damage='ignore': choose one of \['raise', 'skip'\]"),
        ({"short_episodes": "pad"}, "short_episodes='pad': choose one of"),
    ],
)
def test_impossible_numbers_are_refused(root: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data(root, **arguments)


def test_less_than_one_batch_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"holds 366 training windows, less than one batch of 400 on 1 ranks"):
        data(root, batch_size=400, steps_per_epoch=None).train_dataloader()
