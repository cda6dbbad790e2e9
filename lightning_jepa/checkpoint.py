"""Checkpoints that know how they were made: the resolved configuration travels with the weights.

Loading never unpickles code (`weights_only=True`): a module is rebuilt from the configuration through `build`.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from lightning_jepa.build import build
from lightning_jepa.types import Training

LAST = Path("checkpoints", "last.ckpt")  # inside a run folder


class EmbedConfig(L.Callback):
    """Put the configuration and the id of the tracked run into every checkpoint.

    Args:
        config: the run's resolved configuration, plain containers and values; `config["stage"]` rebuilds the module.
        run_id: the tracked run, which `resume=PATH` continues; None where nothing is tracked.
        cost_before: `training_cost` of what this training started from.
    """

    def __init__(self, config: dict[str, Any], run_id: str | None, cost_before: Mapping[str, float]) -> None:
        self.config, self.run_id, self.cost_before = config, run_id, dict(cost_before)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called by Lightning while it gathers a checkpoint."""
        checkpoint["config"], checkpoint["run_id"] = self.config, self.run_id
        checkpoint["cost_before"] = self.cost_before


def resume_path(resume: str | None, out: str | Path) -> Path | None:
    """The checkpoint to go on from: none, the run folder's own last one (`auto`, if there is one), or a given path.

    Raises:
        ValueError: if the given path is no file.
    """
    if resume is None:
        return None
    if resume == "auto":
        return Path(out, LAST) if Path(out, LAST).is_file() else None
    return _file(resume)


def read(path: str | Path) -> dict[str, Any]:
    """A checkpoint's content on the CPU.

    Raises:
        ValueError: if there is no such file, it is damaged, or it was not written by one of the stages.
    """
    try:
        content = torch.load(_file(path), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error) or "the file is empty").splitlines()[0]
        raise ValueError(f"{path} is not a readable checkpoint ({reason}); copy it again or train anew") from error
    if not isinstance(content, dict) or not {"config", "state_dict"} <= content.keys():
        raise ValueError(f"{path} holds no configuration; expected a checkpoint written by lightning_jepa.train")
    return content


def load_stage(path: str | Path) -> L.LightningModule:
    """Rebuild a stage's module from its checkpoint, weights included, in evaluation mode.

    Raises:
        ValueError: if the file cannot be read, or its weights do not fit the module that its configuration describes.
    """
    content = read(path)
    stage: L.LightningModule = build(content["config"]["stage"])
    load_weights(stage, content["state_dict"], path)
    return stage.eval()


def training_cost(content: Mapping[str, Any]) -> dict[str, float]:
    """What is behind a checkpoint's content: seconds of each stage, frames and transitions; empty if not counted."""
    own = dict(content.get("callbacks", {}).get("TrainingCost", {}))
    stage = content["config"].get("train", "pretrain")
    if own and stage != "pretrain":
        own = {f"{stage}_seconds": own["train_seconds"]}
    before: dict[str, float] = content.get("cost_before", {})
    return {**before, **{key: value + before.get(key, 0) for key, value in own.items()}}


def training(content: Mapping[str, Any]) -> Training:
    """`training_cost` of a checkpoint's content, and the curves of its own stage, if they were kept."""
    return Training(training_cost(content), content.get("callbacks", {}).get("Curves", {}).get("curves", {}))


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Load `weights` into `module`, all or nothing.

    Raises:
        ValueError: naming the weights that are missing, unknown or of another shape.
    """
    own = module.state_dict()
    differing = [f"{key} is missing" for key in own if key not in weights]
    differing += [f"{key} is unknown here" for key in weights if key not in own]
    differing += [
        f"{key} has shape {list(weights[key].shape)}, expected {list(own[key].shape)}"
        for key in own
        if key in weights and own[key].shape != weights[key].shape
    ]
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise ValueError(
            f"checkpoint {source} is of another architecture: {'; '.join(differing[:5])}{more}. "
            "Choose the configuration it was trained with"
        )
    module.load_state_dict(dict(weights))


def _file(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise ValueError(f"there is no checkpoint {path}; give the path of a .ckpt file, usually RUN/{LAST}")
    return Path(path)
