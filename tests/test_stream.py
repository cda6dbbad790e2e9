"""The stream: o[k] = x[t0 + k s] with the actions a[t0 + k s : t0 + (k + 1) s] between them; a batch is a function of
its number; validation takes every window exactly once."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.datamodule import EpisodeData
from data_pipelines.schema import Episode, Manifest
from data_pipelines.shards import EpisodeFolder, write_shard
from data_pipelines.stream import Batches, EveryEpisode, Level, ShuffledEpisodes, WindowBatches
from lightning_jepa.types import Window

STEPS = 40
DENSE, COARSE = {"length": 5, "stride": 1}, {"length": 4, "stride": 6}


def clock(number: int, steps: int = STEPS) -> Episode:
    """An episode whose arrays all tell its number and the time: pixels (number, t), actions (number, t), ..."""
    time = np.arange(steps + 1)
    observations = np.empty((steps + 1, 2, 4, 3), np.uint8)
    observations[:, 0], observations[:, 1] = number, time[:, None, None]
    both = np.stack([np.full(steps + 1, number), time], 1).astype(np.float32)
    return Episode(observations, both[:-1].copy(), both[:, 1:].copy(), both)


def write(root: Path, shards: list[list[int]], steps: int = STEPS) -> None:
    """Train and val folders of clocks, numbered through."""
    for split in ("train", "val"):
        folder = root / split
        folder.mkdir(parents=True)
        records, number = [], 0
        for index, shard in enumerate(shards):
            episodes = [clock(number + i, length) for i, length in enumerate(shard)]
            number += len(shard)
            samples = ((f"e{i}", episode, {}) for i, episode in enumerate(episodes))
            records.append(write_shard(folder / f"{index:06d}.tar", samples))
        Manifest(split, {}, (2, 4, 3), 2, 1, ("number", "time"), tuple(records)).write(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven episodes in three uneven shards, not all of the same length."""
    folder = tmp_path_factory.mktemp("clocks")
    write(folder, [[STEPS] * 4, [STEPS, 30, 25, STEPS, 24], [STEPS, STEPS]])
    return folder


def data(root: Path, **arguments: object) -> EpisodeData:
    return EpisodeData(str(root), **{"levels": [DENSE, COARSE], "batch_size": 8, "steps_per_epoch": 5, **arguments})


def fingerprint(batches: list[tuple[Window, ...]]) -> str:
    content = b"".join(tensor.numpy().tobytes() for batch in batches for window in batch for tensor in window)
    return hashlib.sha256(content).hexdigest()


def test_frames_are_stride_apart_and_actions_lead_from_each_to_the_next(root: Path) -> None:
    for batch in data(root).train_dataloader():
        for window, level in zip(batch, (DENSE, COARSE), strict=True):
            length, stride = level["length"], level["stride"]
            assert window.observations.dtype == torch.uint8
            assert window.observations.shape == (8, length, 2, 4, 3)
            assert window.actions.shape == (8, length - 1, stride, 2)
            time = window.observations[:, :, 1, 0, 0].float()
            assert (time.diff(dim=1) == stride).all()
            expected = time[:, :-1, None] + torch.arange(stride)
            assert torch.equal(window.actions[..., 1], expected)
            assert torch.equal(window.truth[..., 1], time)
            assert torch.equal(window.body[..., 0], time)
            assert (window.actions[..., 0] == window.truth[:, :1, :1]).all()
            assert window.mask.all()
        assert torch.equal(batch[0].truth[:, 0, 0], batch[1].truth[:, 0, 0])  # rows share their episode


def test_windows_start_anywhere_up_to_the_last_possible_place(root: Path) -> None:
    batches = list(data(root, steps_per_epoch=200).train_dataloader())
    for level, span in ((0, 4), (1, 18)):
        first = torch.cat([batch[level].truth[:, 0] for batch in batches])
        whole = first[first[:, 0] == 0][:, 1]  # episode 0 has 40 steps
        assert set(whole.tolist()) == set(range(STEPS - span + 1))
    # Each level's start is drawn on its own.
    starts = torch.cat([torch.stack([b[0].truth[:, 0, 1], b[1].truth[:, 0, 1]]) for b in batches], 1)
    assert abs(float(torch.corrcoef(starts)[0, 1])) < 0.3


def test_epochs_have_the_asked_steps_a_new_order_and_repeat_with_the_seed(root: Path) -> None:
    batches = data(root).train_dataloader()
    assert len(batches) == 5
    first, second = list(batches), list(batches)
    assert len(first) == len(second) == 5
    assert fingerprint(first) != fingerprint(second)
    again = data(root).train_dataloader()
    assert [fingerprint(list(again)) for _ in range(2)] == [fingerprint(first), fingerprint(second)]
    assert fingerprint(list(data(root, seed=1).train_dataloader())) != fingerprint(first)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_neither_order_nor_length(root: Path, workers: int) -> None:
    alone, shared = data(root).train_dataloader(), data(root, workers=workers).train_dataloader()
    for _ in range(2):
        assert fingerprint(list(shared)) == fingerprint(list(alone))
    assert fingerprint(list(data(root, workers=workers).val_dataloader())) == fingerprint(
        list(data(root).val_dataloader())
    )


@settings(deadline=None)
@given(episodes=st.integers(1, 60), size=st.integers(1, 8), ranks=st.integers(1, 4), seed=st.integers(0, 99))
def test_training_deals_every_episode_equally_often_whatever_the_ranks(
    episodes: int, size: int, ranks: int, seed: int
) -> None:
    count = episodes  # whole passes
    alone = ShuffledEpisodes(episodes, 2, size * ranks, seed)
    parts = [ShuffledEpisodes(episodes, 2, size, seed, rank, ranks) for rank in range(ranks)]
    taken = []
    for batch in range(count):
        rows, shares = alone(batch), [part(batch) for part in parts]
        assert np.array_equal(rows.episodes, np.concatenate([share.episodes for share in shares]))
        assert np.array_equal(rows.places, np.concatenate([share.places for share in shares]))
        taken.append(rows.episodes)
    assert set(np.bincount(np.concatenate(taken), minlength=episodes)) == {size * ranks}


@settings(deadline=None)
@given(episodes=st.integers(1, 30), each=st.integers(1, 4), size=st.integers(1, 7), ranks=st.integers(1, 4))
def test_validation_takes_each_window_exactly_once_over_all_ranks(
    episodes: int, each: int, size: int, ranks: int
) -> None:
    plans = [EveryEpisode(episodes, 1, size, each, rank, ranks) for rank in range(ranks)]
    assert len({len(plan) for plan in plans}) == 1
    rows = [plan(batch) for plan in plans for batch in range(len(plan))]
    assert {len(row.episodes) for row in rows} == {size}
    taken = [(e, p) for row in rows for e, p in zip(row.episodes[row.mask], row.places[row.mask, 0], strict=True)]
    assert len(taken) == len(set(taken)) == episodes * each
    assert {e for e, _ in taken} == set(range(episodes))
    assert all(0 <= p < 1 for _, p in taken)
    assert all((row.episodes < episodes).all() for row in rows)


@pytest.mark.parametrize("ranks", [1, 3])
def test_validation_batches_are_the_same_each_time_and_mask_the_padding(root: Path, ranks: int) -> None:
    folder, levels = EpisodeFolder(root / "val"), [Level(5, 1)]
    windows = []
    for rank in range(ranks):
        plan = EveryEpisode(len(folder), 1, 8, 3, rank, ranks)
        batches = Batches(WindowBatches(folder, plan, levels), len(plan), 0, repeat=True)
        once = list(batches)
        assert fingerprint(once) == fingerprint(list(batches))
        windows += [tuple(row) for (w,) in once for row in w.truth[w.mask][:, 0].tolist()]
    assert len(windows) == len(set(windows)) == 11 * 3


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


def test_a_resumed_epoch_has_its_own_order(root: Path) -> None:
    module = data(root)
    plain = module.train_dataloader()
    list(plain)
    second = fingerprint(list(plain))
    folder = module.train_episodes
    plan = ShuffledEpisodes(len(folder), 2, 8, seed=0)
    later = Batches(WindowBatches(folder, plan, module.levels), 5, 0, epoch=1)
    assert fingerprint(list(later)) == second


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


def test_a_truncated_shard_is_found_in_setup(tmp_path: Path) -> None:
    write(tmp_path, [[STEPS], [STEPS]])
    shard = tmp_path / "train" / "000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(ValueError, match=r"000001.tar has \d+ bytes, expected \d+. Run the collection again"):
        data(tmp_path).setup("fit")


def test_another_image_size_is_found_in_setup(root: Path) -> None:
    data(root, observation_shape=[2, 4, 3]).setup("fit")
    with pytest.raises(ValueError, match=r"have images \(2, 4, 3\) .* expects \(2, 65, 65\).*resolution"):
        data(root, observation_shape=[2, 65, 65]).setup("fit")


def test_a_window_longer_than_an_episode_is_found_in_setup(root: Path) -> None:
    data(root, levels=[{"length": 5, "stride": 6}]).setup("fit")  # 24 steps, as the shortest episode
    with pytest.raises(ValueError, match=r"length 6 and stride 5 spans 25 steps, but an episode in .* has only 24"):
        data(root, levels=[{"length": 6, "stride": 5}]).setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": []}, "at least one, of length >= 2"),
        ({"levels": [{"length": 1, "stride": 1}]}, "length >= 2"),
        ({"levels": [{"length": 3, "stride": 0}]}, "stride >= 1"),
        ({"batch_size": 0}, "batch_size=0: give at least 1"),
        ({"steps_per_epoch": 0}, "steps_per_epoch=0"),
        ({"workers": -1}, r"workers=-1: give at least 0"),
    ],
)
def test_impossible_numbers_are_refused(root: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data(root, **arguments)
