"""The whole way, from a world to a results file: `python -m lightning_jepa.pipeline experiment=two_rooms`."""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lightning_jepa.errors import one_message
from lightning_jepa.paths import CONF


def pipeline(cfg: DictConfig) -> Path | None:
    """Run `cfg.stages` in order, each seed of `cfg.seeds` in turn, as children of one tracked run.

    Returns:
        The experiment's results file, merged over seeds; None if nothing was evaluated.

    Raises:
        ValueError: as `precheck` and the stages.
    """
    from lightning_jepa import tracking
    from lightning_jepa.build import build
    from lightning_jepa.distill import distill
    from lightning_jepa.evaluate import evaluate
    from lightning_jepa.evaluation import results
    from lightning_jepa.precheck import foundation, precheck, precheck_windows
    from lightning_jepa.staging import TRAINED, before, on_top
    from lightning_jepa.train import train

    precheck(cfg)
    evaluated, destination = [], Path(cfg.paths.results, f"{cfg.name}.json")
    with tracking.tracked(cfg, "pipeline") as logger:
        parent = tracking.run_id(logger)
        if "collect" in cfg.stages:
            step = tracking.nested(cfg, "collect", cfg.seeds[0], parent)
            print(f"collect: episodes into {step.data.root}", flush=True)
            with tracking.tracked(step, "collect") as own:
                manifests = build(step.collection).run()
                digests = {split: manifest.digest for split, manifest in manifests.items()}
                tracking.log_data(own, step.data.root, digests, "collect")
        precheck_windows(cfg)
        for seed in cfg.seeds:
            trained: dict[str | None, str] = {}
            graphs = Path(cfg.paths.out, f"graphs_seed_{seed}.pt")
            for stage in (name for name in TRAINED if name in cfg.stages):
                below = trained.get(before(cfg, stage)) or foundation(cfg, stage, seed)
                step = on_top(tracking.nested(cfg, stage, seed, parent), stage, below, graphs)
                print(f"{stage}: seed {seed}", flush=True)
                trained[stage] = (distill if stage == "distill" else train)(step)["checkpoint"]
            graphs.unlink(missing_ok=True)  # large, and no use to anyone else
            if "evaluate" in cfg.stages:
                print(f"evaluate: seed {seed}", flush=True)
                found = str(list(trained.values())[-1] if trained else foundation(cfg, "evaluate", seed))
                evaluated.append(evaluate(tracking.nested(cfg, "evaluate", seed, parent, found)))
        if evaluated:
            merged = results.merge(evaluated, destination)
            logger.log_metrics({f"exam/{key}": figure.value for key, figure in merged.metrics.items()})
            tracking.log_files(logger, destination, "results")
    return destination if evaluated else None


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
@one_message
def main(cfg: DictConfig) -> None:
    """The command line: one pipeline, or one for each arm of a comparison."""
    if cfg.comparison is None:
        written = pipeline(cfg)
    else:
        from lightning_jepa.compare import compare

        written = compare(cfg, HydraConfig.get().overrides.task)
    if written is not None:
        from lightning_jepa.evaluation.results import load
        from lightning_jepa.evaluation.tables import report

        print(report(load(written)))
    print(f"results: {written or 'none, evaluate was not among the stages'}")
    print(f"curves and figures: make ui, then http://127.0.0.1:5000, experiment {cfg.name}")


if __name__ == "__main__":
    main()
