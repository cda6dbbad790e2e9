"""Put a trained stage to its exam: `python -m lightning_jepa.evaluate experiment=two_rooms checkpoint=PATH`."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from lightning_jepa.errors import one_message
from lightning_jepa.paths import CONF


def evaluate(cfg: DictConfig) -> Path:
    """Run `cfg.evaluation` on the stage in `cfg.checkpoint`; figures and numbers go to the run's folder.

    With `resume=auto`, an exam that the run's folder already holds is not taken again, if it was the same exam of the
    same training.

    Returns:
        The results file of this seed, `seed_<n>.json`.

    Raises:
        ValueError: if no checkpoint is given or it does not fit.
    """
    import json

    import lightning as L

    from lightning_jepa import checkpoint, tracking
    from lightning_jepa.build import build

    if cfg.checkpoint is None:
        raise ValueError("no checkpoint to evaluate; give checkpoint=PATH, as printed at the end of training")
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    stage = checkpoint.load_stage(cfg.checkpoint)
    training = checkpoint.training(checkpoint.read(cfg.checkpoint))
    exam, out = build(cfg.evaluation), Path(cfg.paths.out)
    path, memo = out / f"seed_{cfg.seed}.json", out / "exam.json"
    asked = json.dumps({"evaluation": tracking.plain(cfg)["evaluation"], "training": dict(training.cost)}, indent=1)
    if cfg.resume == "auto" and path.is_file() and memo.is_file() and memo.read_text() == asked:
        return path
    memo.unlink(missing_ok=True)
    with tracking.tracked(cfg, "evaluate") as logger:
        metrics = exam.run(stage, cfg.seed, out, training)
        logger.log_metrics({f"exam/{key}": value for key, value in metrics.items()})
        tracking.log_files(logger, out, "exam")
    memo.write_text(asked)
    return path


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
@one_message
def main(cfg: DictConfig) -> None:
    """The command line."""
    print(f"results and figures are in {evaluate(cfg).parent}")


if __name__ == "__main__":
    main()
