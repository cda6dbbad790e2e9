"""Which stage is trained, with what it builds on: one configuration holds them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

TRAINED = ("pretrain", "critic", "distill")  # in the order in which they build on each other


def staged(cfg: DictConfig, content: Mapping[str, Any] | None) -> tuple[DictConfig, Callable[[nn.Module], nn.Module]]:
    """The configuration of the stage that `cfg.train` names, and which part of it a checkpoint holds.

    What the groups `critic` and `distill` say of stage, data, trainer and callbacks takes the place of what is said at
    the top. The stage before it is rebuilt from the checkpoint's configuration, so that each checkpoint is whole.

    Args:
        cfg: of the run.
        content: a checkpoint of this stage or of the one before; None for none.

    Raises:
        ValueError: if there is no such stage, or the one before is missing or another.
    """
    if cfg.train not in TRAINED:
        raise ValueError(f"train={cfg.train}: choose one of {list(TRAINED)}")
    own = cfg.copy()
    with open_dict(own):
        if cfg.train != "pretrain":
            group = cfg[cfg.train]
            if group is None:
                raise ValueError(f"train={cfg.train}, but nothing says how: choose {cfg.train}=... (conf/{cfg.train})")
            own.stage = group.stage
            for part in ("data", "trainer", "callbacks"):
                own[part] = OmegaConf.merge(own[part], group.get(part, {}))
            # lists of levels are replaced, not merged
            if "levels" in group.get("data", {}):
                own.data.levels = group.data.levels
        found = None if content is None else content["config"]["stage"]
        if "previous" not in own.stage:
            return own, lambda stage: stage
        if found is None:
            before = TRAINED[TRAINED.index(cfg.train) - 1]
            raise ValueError(f"train={cfg.train} builds on a checkpoint of train={before}: give init_from=PATH")
        if found["_target_"] == own.stage._target_:
            own.stage.previous = found["previous"]
            return own, lambda stage: stage
        own.stage.previous = found
        return own, attrgetter("previous")
