"""Train one stage: `python -m lightning_jepa.train experiment=two_rooms`; `train=critic` and others build on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lightning_jepa.errors import one_message
from lightning_jepa.paths import CONF


def train(cfg: DictConfig) -> dict[str, Any]:
    """Fit the stage that `cfg.train` names on its data.

    `cfg.resume` goes on with weights, optimizer, step and tracked run; `cfg.init_from` takes weights alone: of the same
    stage, or the stage before it.

    Returns:
        `checkpoint` (path of the last one), `run_id` (None if untracked), `step`, and the last value of each metric.

    Raises:
        ValueError: for a configuration, data or a checkpoint that does not fit.
    """
    import lightning as L

    from lightning_jepa import checkpoint, tracking
    from lightning_jepa.build import build, resolved
    from lightning_jepa.distributed import is_main
    from lightning_jepa.staging import staged

    L.seed_everything(cfg.seed, workers=True, verbose=False)
    resume = checkpoint.resume_path(cfg.resume, cfg.paths.out)
    start = resume or cfg.init_from
    content = None if start is None else checkpoint.read(start)
    cfg, is_before = staged(cfg, content)
    if is_before:
        # Rebuilt with its weights first: what a stage makes of the one before, it makes of the trained one.
        own = {key: value for key, value in resolved(cfg.stage).items() if key != "previous"}
        stage, data = build(own, previous=checkpoint.load_stage(start)), build(cfg.data)
    else:
        stage, data = build(cfg.stage), build(cfg.data)
    # Before anything is tracked, so that data or a checkpoint that do not fit leave no run behind.
    data.setup("fit")
    if content is not None and not is_before:
        checkpoint.load_weights(stage, content["state_dict"], start)
    callbacks = [build(node) for node in cfg.callbacks.values() if node is not None]
    cost: dict[str, float] = {}
    if content is not None:
        cost = content.get("cost_before", {}) if resume else checkpoint.training_cost(content)
    with tracking.tracked(cfg, cfg.train) as logger:
        callbacks.append(checkpoint.EmbedConfig(tracking.plain(cfg), tracking.run_id(logger), cost))
        trainer: L.Trainer = build(cfg.trainer, logger=logger, callbacks=callbacks)
        if is_main():
            what = f"{sum(weight.numel() for weight in stage.parameters() if weight.requires_grad):,} weights"
            began = f", going on from {resume}" if resume else ""
            where = trainer.strategy.root_device
            print(f"{type(stage).__name__}: {what} on {where} in {trainer.precision}{began}", flush=True)
        tracking.log_data(logger, cfg.data.root, data.digests, cfg.train)
        trainer.fit(stage, datamodule=data, ckpt_path=resume, weights_only=True)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        return {
            "checkpoint": str(Path(cfg.paths.out, checkpoint.LAST)),
            "run_id": tracking.run_id(logger),
            "step": trainer.global_step,
            **metrics,
        }


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
@one_message
def main(cfg: DictConfig) -> None:
    """The command line."""
    from lightning_jepa.distributed import is_main

    done = train(cfg)
    if is_main():
        chosen = HydraConfig.get().runtime.choices.get("experiment")
        words = ["python -m lightning_jepa.evaluate", f"experiment={chosen}" if chosen else f"name={cfg.name}"]
        print(f"trained {done['step']} steps; next: {' '.join(words)} checkpoint={done['checkpoint']}")


if __name__ == "__main__":
    main()
