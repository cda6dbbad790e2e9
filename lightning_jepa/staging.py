"""Which stage is trained, with what it builds on: one configuration holds them all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

# each builds on the nearest of those named with it that the configuration says how to train
BUILDS_ON = {
    "pretrain": (),
    "level2": ("pretrain",),
    "level3": ("level2",),
    "critic": ("level3", "level2", "pretrain"),
    "distill": ("critic",),
    "probe": ("pretrain",),
}
TRAINED = tuple(BUILDS_ON)


def before(cfg: DictConfig, stage: str) -> str | None:
    """The training stage whose checkpoint this one builds on; none for the first, and for an exam, which takes any."""
    return next((name for name in BUILDS_ON.get(stage, ()) if name == "pretrain" or cfg[name] is not None), None)


def part_of(cfg: DictConfig, stage: str, part: str) -> Any:
    """Data, trainer or callbacks of a stage: what its group says takes the place of what is said at the top."""
    return cfg[part] if stage == "pretrain" else OmegaConf.merge(cfg[part], cfg[stage].get(part, {}))


def on_top(cfg: DictConfig, stage: str, below: str | Path | None, graphs: Path) -> DictConfig:
    """The configuration of a pipeline's stage that builds on a checkpoint, and shares its graphs in a file."""
    with open_dict(cfg):
        cfg.train, cfg.init_from = stage, None if below is None else str(below)
        if cfg.critic is not None and "plans" in cfg.critic:
            cfg.critic.plans.cache = str(graphs)
    return cfg


def staged(cfg: DictConfig, content: Mapping[str, Any] | None) -> tuple[DictConfig, bool]:
    """The configuration of the stage that `cfg.train` names, and whether the checkpoint is of the stage before it.

    What a stage's group, such as `critic`, says of stage, data, trainer and callbacks takes the place of what is said
    at the top. The configuration of the stage before comes from the checkpoint, so that each checkpoint is whole.

    Args:
        cfg: of the run.
        content: a checkpoint of this stage or of the one before; None for none.

    Raises:
        ValueError: if there is no such stage, nothing says how to train it, or what it builds on is missing.
    """
    if cfg.train not in TRAINED:
        raise ValueError(f"train={cfg.train}: choose one of {list(TRAINED)}")
    own = cfg.copy()
    if cfg.train == "pretrain":
        return own, False
    group = cfg[cfg.train]
    if group is None:
        raise ValueError(f"train={cfg.train}, but nothing says how: choose {cfg.train}=... (conf/{cfg.train})")
    if content is None:
        raise ValueError(
            f"train={cfg.train} builds on a checkpoint of train={before(cfg, cfg.train)}: give init_from=PATH"
        )
    found, trained = content["config"]["stage"], content["config"].get("train", "pretrain")
    if trained != cfg.train and trained not in BUILDS_ON[cfg.train]:
        raise ValueError(
            f"train={cfg.train} builds on a checkpoint of train={before(cfg, cfg.train)}: this one is of "
            f"train={trained}"
        )
    with open_dict(own):
        own.stage = group.stage
        for part in ("data", "trainer", "callbacks"):
            own[part] = part_of(cfg, cfg.train, part)
        same = trained == cfg.train
        own.stage.previous = found["previous"] if same else found
    return own, not same
