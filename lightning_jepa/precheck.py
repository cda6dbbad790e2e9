"""What cannot work is told before anything is started, not when its stage comes."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from lightning_jepa.build import build, checked, resolved
from lightning_jepa.checkpoint import LAST
from lightning_jepa.distributed import require_one_process
from lightning_jepa.paths import writable
from lightning_jepa.staging import TRAINED, before, part_of

BUILT = {"collect": ("collection",), "pretrain": ("data", "stage"), "evaluate": ("evaluation",)}  # to see that they fit
STAGES = ("collect", *TRAINED, "evaluate")


def precheck(cfg: DictConfig) -> None:
    """Build what the stages of a pipeline build, and look at what they need to find.

    Raises:
        ValueError: for a stage that does not exist, parts that cannot be built, a trainer of several processes, a
            results folder that cannot be written, or nothing to build on or to evaluate.
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
        for part in BUILT.get(stage, ()):
            build(cfg[part])
    trained = [stage for stage in TRAINED if stage in stages]
    for stage in trained:
        checked(cfg.trainer)
        if stage != "pretrain":
            if cfg[stage] is None:
                raise ValueError(f"stages={stages}, but nothing says how: choose {stage}=... (conf/{stage})")
            own = {key: value for key, value in resolved(cfg[stage].stage).items() if key != "previous"}
            checked({**own, "_partial_": True})  # what it builds on joins when that is trained
    for seed in cfg.seeds:
        for stage in trained or (["evaluate"] if "evaluate" in stages else []):
            found = foundation(cfg, stage, seed)
            if found is not None and before(cfg, stage) not in trained and not found.is_file():
                raise ValueError(
                    f"there is no checkpoint {found} for {stage} to build on; give checkpoint=PATH, or resume=auto for "
                    f"the newest run called {cfg.name}"
                )
    if "evaluate" in stages:
        writable(cfg.paths.results)


def precheck_windows(cfg: DictConfig) -> None:
    """See that all stages find their windows in the episodes, before the first of them trains for hours.

    Raises:
        ValueError: if data are missing or damaged, or episodes are too short for a stage's windows.
    """
    for stage in TRAINED:
        if stage in cfg.stages and stage != "distill":  # that one collects episodes of its own
            try:
                build(part_of(cfg, stage, "data")).setup("fit")
            except ValueError as error:
                raise ValueError(f"the data of {stage}: {error}") from error


def left_by(cfg: DictConfig, stage: str, seed: int) -> Path:
    """The checkpoint that a training stage of a pipeline leaves in the run's folder."""
    folder = Path(cfg.paths.out, f"{stage}_seed_{seed}")
    return (folder / f"round_{cfg.distill.rounds - 1}" if stage == "distill" else folder) / LAST


def foundation(cfg: DictConfig, stage: str, seed: int) -> Path | None:
    """What a stage of a pipeline starts from, if nothing before it is run: `cfg.checkpoint`, or what the folder has.

    An exam takes the newest of the stages that were trained.
    """
    if stage == "pretrain":
        return None
    if cfg.checkpoint is not None:
        return Path(cfg.checkpoint)
    if stage in TRAINED:
        return left_by(cfg, str(before(cfg, stage)), seed)
    known = [name for name in TRAINED if name == "pretrain" or cfg[name] is not None]
    left = [left_by(cfg, name, seed) for name in known]
    return next((path for path in reversed(left) if path.is_file()), left[0])
