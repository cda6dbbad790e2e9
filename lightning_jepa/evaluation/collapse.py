"""The exam E2 `collapse`: what one way of training leaves of the world in the states, and what that is good for.

Legend: N walks, H horizon, D state, F factors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn

from lightning_jepa.cost.goal import GoalEnergy
from lightning_jepa.evaluation.energy_figures import collapse_figure
from lightning_jepa.evaluation.episodes import Acting, AgentPolicy, Policy, first_tasks, progress_bar, run_episodes
from lightning_jepa.evaluation.floors import DrunkardPolicy, RandomPolicy, StraightPolicy
from lightning_jepa.evaluation.ranking import auroc
from lightning_jepa.evaluation.report import Report, Trained
from lightning_jepa.evaluation.results import Figure, Rows, mean
from lightning_jepa.evaluation.states import BATCH, encode_frames
from lightning_jepa.evaluation.walks import Walks, random_walks
from lightning_jepa.evaluation.world import ExamWorld
from lightning_jepa.evaluation.world_model_exam import probe_rows
from lightning_jepa.protocols import EnergyModel, Planner
from lightning_jepa.types import Tasks, Training
from lightning_jepa.world_model.spread import Spread

CURVES = ("effective_rank", "largest_std")


class Examinee(Trained, Protocol):
    """A pretrained stage."""

    jepa: EnergyModel
    metric: nn.Module


class CollapseExam:
    """Measures one arm of the comparison of training methods, for one seed.

    A collapse of the states shows in their rank and spread; one of the energy in `auroc_other_actions`, how well it
    tells what the actions led to from what others would have (.5: not at all).

    Args:
        world: the world; its device is where the model under exam is put.
        tasks: the committed list of starts and goals.
        planner: Mode-2, a partial one that lacks its `metric`.
        agent: the agent, which lacks `world_model`, `cost`, `planner` and `seed`.
        episodes: tasks of the row on success; none leave it out.
        batch: episodes at once.
        radius: success is being this near to the goal, pixels.
        probe_walks: walks in training layouts that probes are fitted on.
        test_walks: N, in held-out layouts.
        horizon: H, steps of a continuation.
        targets, name, note: see `TwoRoomsExam`.
    """

    def __init__(
        self,
        *,
        world: ExamWorld,
        tasks: Tasks,
        planner: Callable[..., Planner],
        agent: Callable[..., Acting],
        episodes: int = 50,
        batch: int = 50,
        radius: float = 4.5,
        probe_walks: int = 1500,
        test_walks: int = 400,
        horizon: int = 8,
        targets: Mapping[str, Mapping[str, Any]] | None = None,
        name: str = "collapse",
        note: str | None = None,
    ) -> None:
        self.world, self.planner, self.agent = world, planner, agent
        self.tasks = first_tasks(tasks, episodes) if episodes else None
        self.batch, self.radius, self.horizon = batch, radius, horizon
        self.probe_walks, self.test_walks = probe_walks, test_walks
        protocol = {
            "episodes": episodes,
            "layouts": "held out",
            "success": f"within {radius} px at the last step; graph search, distances between states",
            "continuations": f"{horizon} steps; what the actions led to against what those of another walk would have",
            "intervals": "95 %: Wilson for shares, bootstrap over layouts for R2, Student's t for other means",
        }
        self.report = Report(name, protocol, targets, note)

    def run(self, stage: Examinee, seed: int, out: Path, training: Training) -> dict[str, float]:
        """Write `out/seed_<seed>.json` and `out/figures`; returns the metrics' values."""
        stage.to(self.world.device)
        stage.eval()
        jepa, generator = stage.jepa, Generator().manual_seed(seed)
        fit = random_walks(self.world, "train", self.probe_walks, self.horizon, generator)
        test = random_walks(self.world, "held_out", self.test_walks, self.horizon, generator)
        metrics = self._spread(jepa, test) | self._energies(jepa, test)
        metrics |= probe_rows(self.world.truth_names, jepa, fit, test)[0]
        floors: Rows = {}
        if self.tasks is not None:
            metrics["mode2_success"], floors = self._success(stage, seed)
        seconds = training.cost.get("train_seconds")
        if seconds is not None:
            metrics["train_seconds"] = mean([seconds])
        curve: dict[str, Rows] = {}
        for name in CURVES:
            for step, value in training.curves.get(f"monitor/{name}", ()):
                curve.setdefault(f"{step:g}", {})[name] = mean([value])
        results = self.report.write(
            out, seed, metrics, training.cost, floors=floors, tables={"training": curve} if curve else None
        )
        if curve:
            collapse_figure(out / "figures" / "collapse.png", {results.experiment: curve})
        return results.values

    def _spread(self, jepa: EnergyModel, test: Walks) -> Rows:
        states = encode_frames(jepa, test.observations[:, ::4].flatten(0, 1)).float()
        spread = Spread(states.shape[-1]).to(states.device)
        spread.update(states)
        return {name: mean([float(value)]) for name, value in spread.compute().items()}

    @torch.no_grad()
    def _energies(self, jepa: EnergyModel, test: Walks) -> Rows:
        """Continuations of the same start and actions: what followed, what others lead to, and another place."""
        start, followed = test.positions[:, 0], test.observations[:, 1:]
        s = encode_frames(jepa, test.observations[:, 0]).float()

        def energy(frames: Tensor) -> Tensor:
            s_y = encode_frames(jepa, frames.flatten(0, 1)).float().unflatten(0, frames.shape[:2])
            parts = zip(s.split(BATCH), test.actions.split(BATCH), s_y.split(BATCH), strict=True)
            return torch.cat([jepa.energy(*part) for part in parts])

        true = energy(followed)
        return {
            "auroc_other_actions": auroc(true, energy(self._led(test.layouts, start, test.actions.roll(1, 0)))),
            "auroc_other_place": auroc(true, energy(followed.roll(1, 0))),
        }

    def _led(self, layouts: Tensor, start: Tensor, actions: Tensor) -> Tensor:
        """What is seen along the way of actions [N, H, 2]: [N, H, C, h, w]."""
        self.world.reset(layouts, start)
        return torch.stack([self.world.step(action) for action in actions.unbind(1)], 1)

    def _success(self, stage: Examinee, seed: int) -> tuple[Figure, Rows]:
        assert self.tasks is not None
        made = self.agent(
            world_model=stage.jepa,
            cost=GoalEnergy(stage.metric),
            planner=self.planner(metric=stage.metric),
            seed=seed,
        )
        policies: dict[str, Policy] = {
            "Mode-2": AgentPolicy(made),
            "random": RandomPolicy(seed),
            "straight": StraightPolicy(seed),
            "drunkard": DrunkardPolicy(seed),
        }
        with progress_bar() as bar:
            rows = {
                name: run_episodes(
                    self.world, self.tasks, policy, radius=self.radius, batch=self.batch, progress=bar, label=name
                ).rows()["success"]
                for name, policy in policies.items()
            }
        return rows.pop("Mode-2"), rows
