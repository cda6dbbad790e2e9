"""A small stage, its data and its trainer, for tests of pretraining."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from data_pipelines.collect import Collection
from data_pipelines.datamodule import EpisodeData
from data_pipelines.worlds.rooms import RoomsWorld, TwoRoomsLayouts
from data_pipelines.worlds.walks import VonMisesWalk
from lightning_jepa.perception.conv import ConvEncoder
from lightning_jepa.stages.jepa_pretraining import JEPAPretraining
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


def collect_shards(root: Path) -> str:
    """Twelve short episodes to train on and five to validate."""
    world = RoomsWorld(TwoRoomsLayouts(), episode_steps=24)
    Collection(world, VonMisesWalk(), str(root), {"train": 12, "val": 5}, episodes_per_shard=6).run()
    return str(root)


def data(root: str, **arguments: Any) -> EpisodeData:
    levels = [{"length": 5, "stride": 1}, {"length": 4, "stride": 6}]
    return EpisodeData(
        root, **{"levels": levels, "batch_size": 4, "steps_per_epoch": STEPS, "val_windows_per_episode": 2, **arguments}
    )


def stage(seed: int = 0, **arguments: Any) -> JEPAPretraining:
    torch.manual_seed(seed)
    encoder, predictor = ConvEncoder(widths=[4], channels=SHAPE[0]), ConvPredictor(SHAPE, 2, hidden=4)
    given: dict[str, Any] = {
        "criteria": {
            "vicreg": VarianceCovariance(state_shape=SHAPE),
            "inverse_dynamics": InverseDynamics(SpatialInverse(SHAPE, 2, hidden=4)),
        },
        "horizon": 4,
        "every": 4,
        "geometry": TemporalContrast(MetricSpace(SIZE, size=3, hidden=8)),
        "weights": WEIGHTS,
        **arguments,
    }
    jepa = JEPA(encoder, predictor, action_scale=2.45)
    return JEPAPretraining(jepa, optimizer=partial(torch.optim.AdamW, lr=1e-3), **given)


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
