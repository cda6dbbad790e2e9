"""The same pipeline under several settings, told in one table: what the pipeline does where a configuration has arms.

`comparison.arms` names them, each with the overrides that tell it from the others; `comparison.figures` are drawn of a
table that each arm has: RUN/figures/NAME.png.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf, open_dict


def compare(cfg: DictConfig, given: Sequence[str]) -> Path:
    """Run `cfg.stages` for every arm, and join what was measured.

    Args:
        cfg: of the whole, with a `comparison`.
        given: the overrides that it was composed with; each arm is composed with its own after them.

    Returns:
        The experiment's results file. Its table `arms` has a row for each arm.

    Raises:
        ValueError: without arms, or if the headline asks for what no arm measured; as `pipeline`.
    """
    from lightning_jepa.build import build
    from lightning_jepa.evaluation.results import compared, load
    from lightning_jepa.pipeline import pipeline

    if cfg.comparison is None or not cfg.comparison.arms:
        raise ValueError(f"{cfg.name} has nothing to compare: say what under comparison.arms, or give comparison=null")
    runs = {name: composed(cfg, given, name) for name in cfg.comparison.arms}
    parts = {}
    for name, own in runs.items():
        print(f"arm: {name}", flush=True)
        found = pipeline(own)
        if found is not None:
            parts[name] = load(found)
    destination = Path(cfg.paths.results, f"{cfg.name}.json")
    joined = compared(parts, dict(cfg.comparison.headline), list(cfg.comparison.columns), destination)
    for name, figure in (cfg.comparison.get("figures") or {}).items():
        some = [arm for arm in figure.get("arms", parts) if f"{figure.table}_{arm}" in joined.tables]
        curves = {arm: joined.tables[f"{figure.table}_{arm}"] for arm in some}
        build(figure.draw)(Path(cfg.paths.out, "figures", f"{name}.png"), curves)
    return destination


def composed(cfg: DictConfig, given: Sequence[str], name: str) -> DictConfig:
    """The configuration of one arm: its results stay in its folder, below that of the whole."""
    arm = cfg.comparison.arms[name]
    overrides = OmegaConf.to_container(arm.overrides, resolve=False)  # ${...} in them is meant for the arm's own
    assert isinstance(overrides, list)
    own = hydra.compose("config", [*given, *overrides])
    with open_dict(own):
        own.seeds = arm.get("seeds", cfg.seeds)
        own.paths.out = own.paths.results = str(Path(cfg.paths.out, name))
        if "run_name" in own.tracking:
            own.tracking.run_name = name
    return own
