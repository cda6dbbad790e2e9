"""The keys at the top of the configuration and their types: a wrong name or type is refused while it is composed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING


@dataclass
class Settings:
    """What `conf/config.yaml` fills in. The groups are free here: `build` checks their keys against their classes."""

    name: str = MISSING
    train: str = MISSING
    seed: int = MISSING
    seeds: list[int] = MISSING
    stages: list[str] = MISSING
    resume: str | None = None
    init_from: str | None = None
    checkpoint: str | None = None

    world: Any = None
    collection: Any = None
    data: Any = None
    perception: Any = None
    world_model: Any = None
    latent: Any = None
    criterion: Any = None
    target: Any = None
    geometry: Any = None
    cost: Any = None
    planner: Any = None
    agent: Any = None
    views: Any = None
    stage: Any = None
    level2: Any = None
    level3: Any = None
    critic: Any = None
    distill: Any = None
    probe: Any = None
    trainer: Any = None
    tracking: Any = None
    evaluation: Any = None
    comparison: Any = None
    callbacks: Any = None
    paths: Any = None
