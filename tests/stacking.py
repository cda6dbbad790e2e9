"""A second level of the small model of `pretraining`, and windows for it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from pretraining import SHAPE
from pretraining import data as pretraining_data
from pretraining import stage as pretraining_stage

from lightning_jepa.stages.hierarchical_stacking import HierarchicalStacking
from lightning_jepa.stages.jepa_pretraining import JEPAPretraining
from lightning_jepa.types import Window
from lightning_jepa.world_model.convolutional import ConvPredictor
from lightning_jepa.world_model.criteria.temporal_contrast import TemporalContrast
from lightning_jepa.world_model.criteria.vicreg import VarianceCovariance
from lightning_jepa.world_model.jepa import JEPA
from lightning_jepa.world_model.latent.discrete import DiscreteLatent
from lightning_jepa.world_model.latent_jepa import LatentJEPA
from lightning_jepa.world_model.level import Level, MacroAction, MapAbove, Same
from lightning_jepa.world_model.metric import MetricSpace

ABOVE = (1, 9, 9)
WEIGHTS = {"prediction": 2.0, "variance": 1.0, "covariance": 1.0, "contrast": 0.1}


def level(
    steps: int = 3, action_size: int = 2, size: int = 2, below: tuple[int, ...] = SHAPE, codes: int = 0, **given: Any
) -> Level:
    encoder = MapAbove(below, 1, hidden=4) if below[0] > 1 else Same(81)
    predictor = ConvPredictor(ABOVE, size + codes, hidden=4)
    jepa = LatentJEPA(DiscreteLatent(codes, 81, size), encoder, predictor) if codes else JEPA(encoder, predictor)
    macro = MacroAction(steps, action_size, size, hidden=8, action_scale=2.45 if action_size == 2 else 1.0)
    return Level(jepa, macro, MetricSpace(81, size=3, hidden=8), **given)


def stacked(below: JEPAPretraining | None = None, own: Level | None = None, **given: Any) -> HierarchicalStacking:
    below = below if below is not None else pretraining_stage()
    torch.manual_seed(1)
    arguments: dict[str, Any] = {
        "criteria": {"vicreg": VarianceCovariance(state_shape=ABOVE)},
        "weights": WEIGHTS,
        "optimizer": partial(torch.optim.AdamW, lr=1e-2),
        "horizon": 2,
        "every": 1,
        "geometry": TemporalContrast,
        **given,
    }
    return HierarchicalStacking(below, own if own is not None else level(), **arguments)


def data(root: str, *levels: tuple[int, int]) -> Any:
    return pretraining_data(root, levels=[{"length": length, "stride": stride} for length, stride in levels])


def batch(root: str, *levels: tuple[int, int]) -> tuple[Window, ...]:
    made = data(root, *levels)
    made.setup("fit")
    return next(iter(made.train_dataloader()))  # type: ignore[no-any-return]
