"""Compile Mode-2 into Mode-1: `python -m lightning_jepa.distill experiment=two_rooms init_from=CRITIC.ckpt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, open_dict

from lightning_jepa.errors import one_message
from lightning_jepa.paths import CONF


def distill(cfg: DictConfig) -> dict[str, Any]:
    """Rounds of collecting what Mode-2 plans and of training the policy on all of it.

    In the first round Mode-2 acts, from the second on the policy does while Mode-2 plans from where it gets. The data
    set grows from round to round, and so each round trains on all before it.

    Returns:
        As `train`, of the last round.

    Raises:
        ValueError: as `train`.
    """
    from lightning_jepa import checkpoint
    from lightning_jepa.build import build, resolved
    from lightning_jepa.distributed import require_one_process
    from lightning_jepa.train import train

    require_one_process(cfg.trainer, "distillation, which collects between its rounds,")
    if cfg.init_from is None:
        raise ValueError("distillation builds on a checkpoint of train=critic: give init_from=PATH")
    trained, done = cfg.init_from, {}
    for number in range(cfg.distill.rounds):
        stage: Any = checkpoint.load_stage(trained)
        critic = stage if number == 0 else stage.previous
        planner = build(cfg.distill.planner)
        if callable(planner):  # a partial one
            planner = planner(metric=critic.metric)
        parts = {"world_model": critic.jepa, "cost": critic.cost, "planner": planner}
        make = build(cfg.agent)
        agent = make(**parts)
        student = None if number == 0 else make(**parts, policy=stage.policy, mode="reactive")
        step = cfg.copy()
        with open_dict(step):
            step.train, step.init_from = "distill", trained
            step.paths.out = str(Path(cfg.paths.out, f"round_{number}"))
            if "run_name" in step.tracking:
                step.tracking.run_name = f"{step.tracking.run_name}_round_{number}"
            # all rounds share one data set; what an earlier round made of it stays
            step.distill.collection.root = str(Path(cfg.paths.out, "plans"))
            step.critic.plans.cache = cfg.critic.plans.cache or str(Path(cfg.paths.out, "graphs.pt"))
            episodes = {split: (number + 1) * count for split, count in cfg.distill.collection.episodes.items()}
            step.distill.collection.episodes = episodes
        world = build({**resolved(cfg.world), "episode_steps": cfg.distill.episode_steps})
        teacher = build(cfg.distill.teacher)(agent=agent, u=critic.u, student=student)
        print(f"distill: round {number + 1} of {cfg.distill.rounds}", flush=True)
        build(step.distill.collection)(world=world, policy=teacher).run()
        done = train(step)
        trained = done["checkpoint"]
    return done


@hydra.main(version_base="1.3", config_path=CONF, config_name="config")
@one_message
def main(cfg: DictConfig) -> None:
    """The command line."""
    done = distill(cfg)
    print(f"distilled; next: python -m lightning_jepa.evaluate checkpoint={done['checkpoint']}")


if __name__ == "__main__":
    main()
