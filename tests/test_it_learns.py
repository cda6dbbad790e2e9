"""That pretraining learns what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import configuration

from lightning_jepa import checkpoint, train
from lightning_jepa.build import build

pytestmark = pytest.mark.slow


def test_it_learns(tmp_path: Path) -> None:
    """300 steps, with the action's term first: the agent can be read off the state, and predictions of eight steps beat
    the last state copied, and those from other episodes' actions, twofold."""
    cfg = configuration(
        tmp_path,
        "learns",
        "tracking=none",
        "world.episode_steps=30",
        "collection.episodes={train: 200, val: 60}",
        "collection.episodes_per_shard=50",
        "perception.channels=8",
        "world_model.hidden=16",
        "world_model.depth=2",
        "criterion.inverse_dynamics.every=1",
        "stage.geometry=null",
        "~stage.weights.contrast",
        "stage.weights={prediction: 1, inverse_dynamics: 10}",
        "stage.optimizer.lr=4e-3",
        "data.steps_per_epoch=300",
        "trainer.max_epochs=1",
        "trainer.precision=32-true",
    )
    build(cfg.collection).run()
    done = train.train(cfg)
    assert (done["probe/agent_x_r2"] + done["probe/agent_y_r2"]) / 2 > 0.6
    assert done["monitor/effective_rank"] > 8

    jepa = checkpoint.load_stage(done["checkpoint"]).jepa
    batches = [windows[0] for windows in build(cfg.data).val_dataloader()]
    observations, actions = (
        torch.cat([getattr(w, name)[w.mask] for w in batches]) for name in ("observations", "actions")
    )
    with torch.no_grad():
        states = jepa.encode(observations)
        error = jepa.predictions(states, actions[:, :, 0], states, 8)[1]["prediction"].mean()
        shuffled = jepa.predictions(states, actions[:, :, 0].roll(1, 0), states, 8)[1]["prediction"].mean()
        copied = (states[:, 1:] - states[:, :1]).square().mean()
    assert error < copied / 2
    assert error < shuffled / 2
