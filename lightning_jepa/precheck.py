"""What cannot work is told before anything is started, not when its stage comes."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from lightning_jepa.build import build, checked
from lightning_jepa.checkpoint import LAST
from lightning_jepa.distributed import require_one_process
from lightning_jepa.paths import writable

STAGES = {"collect": ("collection",), "pretrain": ("data", "stage"), "evaluate": ("evaluation",)}  # and what they build


def precheck(cfg: DictConfig) -> None:
    """Build what the stages of a pipeline build, and look at what they need to find.

    Raises:
        ValueError: for a stage that does not exist, parts that cannot be built, a trainer of several processes, a
            results folder that cannot be written, or nothing to evaluate.
    """
    stages = list(cfg.stages)
    if not stages or not set(stages) <= set(STAGES):
        raise ValueError(f"stages={stages}; choose some of {list(STAGES)}")
    if cfg.resume not in (None, "auto"):
        raise ValueError(
            f"resume={cfg.resume} goes on with one stage (python -m lightning_jepa.train); here: resume=auto"
        )
    require_one_process(cfg.trainer, "the pipeline")
    for stage in stages:
        for part in STAGES[stage]:
            build(cfg[part])
    if "pretrain" in stages:
        checked(cfg.trainer)
    elif "evaluate" in stages:
        for seed in cfg.seeds:
            expected = Path(cfg.checkpoint or pretrained(cfg, seed))
            if not expected.is_file():
                raise ValueError(
                    f"there is no checkpoint {expected} to evaluate; give checkpoint=PATH, or resume=auto for the "
                    f"newest run called {cfg.name}"
                )
    if "evaluate" in stages:
        writable(cfg.paths.results)


def pretrained(cfg: DictConfig, seed: int) -> str:
    """The checkpoint that a pipeline's pretraining of this seed leaves in the run's folder."""
    return str(Path(cfg.paths.out, f"pretrain_seed_{seed}", LAST))
