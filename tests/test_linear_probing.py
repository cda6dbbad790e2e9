"""Labels read off frozen states: minimise the cross-entropy of softmax(W norm(s) + b); and pretraining on pairs."""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pretraining import trainer
from torch import nn

from data_pipelines.datamodule import EpisodeData
from data_pipelines.source import SourceCollection
from data_pipelines.sources.bouncing import BouncingPictures
from data_pipelines.sources.idx import IdxPictures
from lightning_jepa.evaluation.labels import LabelExam
from lightning_jepa.evaluation.results import load
from lightning_jepa.perception.conv import ConvEncoder
from lightning_jepa.perception.views import MaskedView, TwoViews, Views
from lightning_jepa.stages.jepa_pretraining import JEPAPretraining
from lightning_jepa.stages.linear_probing import LinearProbing
from lightning_jepa.types import Training
from lightning_jepa.world_model.criteria.vicreg import VarianceCovariance
from lightning_jepa.world_model.jepa import JEPA
from lightning_jepa.world_model.residual import ResidualPredictor

SIDE, CLASSES = 12, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with a bright square in one of three corners, and a shard of them."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for part, count in (("train", 140), ("t10k", 60)):
        labels = generator.integers(0, CLASSES, count).astype(np.uint8)
        pictures = generator.integers(0, 100, (count, SIDE, SIDE), np.uint8)
        for picture, label in zip(pictures, labels, strict=True):
            y, x = ((0, 0), (0, 7), (7, 0))[label]
            picture[y : y + 5, x : x + 5] = 250
        for name, array in ((f"{part}-images-idx3-ubyte", pictures), (f"{part}-labels-idx1-ubyte", labels)):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (root / name).write_bytes(head + array.tobytes())
    SourceCollection(IdxPictures(str(root), 20), str(root / "shards"), episodes_per_shard=3).run()
    return root


def data(folder: Path) -> EpisodeData:
    return EpisodeData(
        str(folder / "shards"),
        levels=[{"length": 1, "stride": 1}],
        batch_size=20,
        steps_per_epoch=None,
        val_windows_per_episode=None,
        observation_shape=[1, SIDE, SIDE],
    )


def pretrained(views: Views | None = None) -> JEPAPretraining:
    torch.manual_seed(0)
    encoder = ConvEncoder(1, SIDE, (8,), 4)
    jepa = JEPA(encoder, ResidualPredictor(encoder.state_size, 0, 16))
    weights = {"prediction": 1.0, "variance": 1.0, "covariance": 1.0}
    criteria = {"vicreg": VarianceCovariance()}
    optimizer = partial(torch.optim.AdamW, lr=1e-3)
    return JEPAPretraining(jepa, criteria, weights, optimizer, horizon=1, every=1, views=views)


def probe(**more: Any) -> LinearProbing:
    given = {"classes": CLASSES, "label": "class", "optimizer": partial(torch.optim.AdamW, lr=0.02), **more}
    return LinearProbing(pretrained(), **given)


def test_what_is_there_is_read_and_the_encoder_stays(folder: Path, tmp_path: Path) -> None:
    stage = probe()
    before = [weight.clone() for weight in stage.encoder.parameters()]
    fit = trainer(tmp_path, max_epochs=8)
    fit.fit(stage, datamodule=data(folder))
    assert float(fit.callback_metrics["val/accuracy"]) > 0.95
    for now, then in zip(stage.encoder.parameters(), before, strict=True):
        assert torch.equal(now, then)
    exam = LabelExam(source=IdxPictures(str(folder), 20), split="val")
    metrics = exam.run(stage, 0, tmp_path / "exam", Training())
    assert metrics["linear_probe"] == pytest.approx(float(fit.callback_metrics["val/accuracy"]))
    assert LabelExam(source=exam.source).run(stage, 0, tmp_path / "test", Training())["linear_probe"] > 0.95
    assert load(tmp_path / "test" / "seed_0.json").metrics["linear_probe"].n == 60
    assert set(load(tmp_path / "exam" / "seed_0.json").tables["classes"]) == {"0", "1", "2"}
    with Image.open(tmp_path / "exam" / "figures" / "neighbours.png") as picture:
        assert picture.width > 300


def test_any_label_of_any_shards_is_read(tmp_path: Path) -> None:
    """The second of two digits that fly, by the name of its column among others."""
    scenes = BouncingPictures(train=60, val=20, things=2, side=SIDE, zoom=1, steps=1, fastest=1.0)
    SourceCollection(scenes, str(tmp_path / "shards"), episodes_per_shard=30).run()
    stage = probe(classes=10, label="class_1")
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(stage, datamodule=data(tmp_path))
    batch = next(iter(fit.datamodule.train_dataloader()))  # type: ignore[attr-defined]
    _, labels = stage._read(batch[0])
    column = scenes.truth_names.index("class_1")
    assert torch.equal(labels, batch[0].truth[..., column].flatten().long())
    assert len(labels.unique()) > 3


def test_the_control_learns_its_encoder_too(folder: Path, tmp_path: Path) -> None:
    stage = probe(finetune=True)
    before = [weight.clone() for weight in stage.encoder.parameters()]
    trainer(tmp_path, max_epochs=1).fit(stage, datamodule=data(folder))
    assert not any(torch.equal(now, then) for now, then in zip(stage.encoder.parameters(), before, strict=True))


@pytest.mark.parametrize("views", [TwoViews(), MaskedView(4)])
def test_pretraining_on_pairs(views: Views, folder: Path, tmp_path: Path) -> None:
    """prediction = D(s_y, Pred(s_x)) of x and y of the same picture: it falls, and states do not collapse."""
    stage = pretrained(views)
    fit = trainer(tmp_path, max_epochs=4)
    first = stage.terms(stage.viewed(next(iter(data(folder).train_dataloader()))))[0]
    fit.fit(stage, datamodule=data(folder))
    assert float(fit.callback_metrics["val/variance"]) < first["variance"].item()
    assert torch.isfinite(fit.callback_metrics["val/prediction"])
    assert int(views.drawn) >= 4 * 6


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"label": "kind"}, r"label=kind: the data's truth has \['class'\]"),
        ({"classes": 2}, "made for 2 classes: set probe.stage.classes"),
    ],
)
def test_labels_that_do_not_fit(more: dict[str, Any], message: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(probe(**more), datamodule=data(folder))


def test_what_can_not_be_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        probe(classes=1)
    exam = LabelExam(source=IdxPictures(str(folder), 20))
    with pytest.raises(ValueError, match="train=probe"):
        exam.run(nn.Linear(2, 2), 0, tmp_path, Training())  # type: ignore[arg-type]  # no probe
