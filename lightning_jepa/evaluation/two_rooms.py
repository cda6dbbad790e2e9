"""The exam E1 `two_rooms`: perception, world model and both modes of a trained agent, with floors, ceilings, controls.

Legend: N tasks, D state, De metric space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from rich.progress import Progress
from torch import nn

from lightning_jepa.evaluation.cloning import cloned, untrained
from lightning_jepa.evaluation.cost_rank import planning_cost
from lightning_jepa.evaluation.diagnosis import diagnose
from lightning_jepa.evaluation.episodes import (
    Acting,
    AgentPolicy,
    Episodes,
    Policy,
    first_tasks,
    progress_bar,
    run_episodes,
)
from lightning_jepa.evaluation.figures import success_figure
from lightning_jepa.evaluation.floors import (
    DrunkardPolicy,
    ExpertPolicy,
    PixelDistance,
    RandomPolicy,
    StraightPolicy,
    TrueDynamics,
)
from lightning_jepa.evaluation.portraits import draw_all
from lightning_jepa.evaluation.report import Report, Trained
from lightning_jepa.evaluation.results import Figure, Results, Rows, mean
from lightning_jepa.evaluation.walks import Walker
from lightning_jepa.evaluation.world import ExamWorld
from lightning_jepa.evaluation.world_model_exam import WorldModelExam
from lightning_jepa.protocols import Cost, Planner, WorldModel
from lightning_jepa.types import Tasks, Training


class Examinee(Trained, Protocol):
    """A trained stage: its JEPA, the metric in which the goal's energy measures distance, and what it has beyond."""

    jepa: WorldModel
    metric: nn.Module
    cost: Cost | None  # with a critic, from the stage that trains one
    policy: nn.Module | None  # from the stage that distils one


SMALL_DATA = 200_000  # transitions from which `mode2_success_200k` has to come
MakePlanner = Callable[..., Planner]  # a class or a partial, called with metric: nn.Module | None


class TwoRoomsExam:
    """Measures every key of E1, and those of E6 that are asked in this world, for one seed.

    The agent plans on its stage's own cost, intrinsic cost and critic; on the goal's energy after pretraining alone.
    Mode-1 is measured where there is a policy.

    Args:
        world: the world; its device is where the model under exam is put.
        tasks: the committed list of starts and goals.
        planner: Mode-2 of the agent: a planner, or a partial one that lacks its `metric`.
        quarter: the same with a quarter of its samples, for warm starts.
        planners: others, compared on the same checkpoint, on the goal's energy.
        search: a planner that minimises the cost it is given, for the true dynamics' floor and the diagnosis.
        larger: the agent's planner with a larger budget, for the diagnosis of search; none leaves that row out.
        cost: the goal's energy, which lacks its `metric`.
        agent: the agent, which lacks `world_model`, `cost`, `planner` and `seed`.
        walker: who collected the training data, for behaviour cloning.
        episodes: tasks of the main rows and the floors.
        planner_episodes: tasks of each row of the planner table, and of planning with the true dynamics.
        diagnosis_episodes: tasks of each row of the diagnosis, at most `episodes`; 0 leaves it out.
        reactive_noise: of the agent in Mode-1, which is wrong about more corners than in Mode-2.
        batch: episodes at once.
        radius: success is being this near to the goal, pixels.
        probe_walks, test_walks, pushes, rank_layouts: see `WorldModelExam`.
        cloning: settings of `cloning.cloned`.
        targets: for a key, its label and `at_least` or `at_most`.
        name: of the experiment.
        note: what a reader of the results has to know before anything else.
    """

    def __init__(
        self,
        *,
        world: ExamWorld,
        tasks: Tasks,
        planner: Planner | MakePlanner,
        quarter: Planner | MakePlanner,
        planners: Mapping[str, Planner | MakePlanner],
        search: Planner,
        larger: Planner | MakePlanner | None,
        cost: Callable[..., Cost],
        agent: Callable[..., Acting],
        walker: Walker,
        episodes: int = 300,
        planner_episodes: int = 100,
        diagnosis_episodes: int = 50,
        reactive_noise: float = 1.0,
        batch: int = 50,
        radius: float = 4.5,
        probe_walks: int = 4000,
        test_walks: int = 600,
        pushes: int = 1000,
        rank_layouts: int = 40,
        cloning: Mapping[str, int] | None = None,
        targets: Mapping[str, Mapping[str, Any]] | None = None,
        name: str = "two_rooms",
        note: str | None = None,
    ) -> None:
        self.world, self.batch, self.radius = world, batch, radius
        self.planner, self.planners, self.larger, self.search = planner, planners, larger, search
        self.reactive_noise = reactive_noise
        self.quarter, self.walker, self.cloning = quarter, walker, dict(cloning or {})
        self.cost, self.agent = cost, agent
        self.tasks, self.fewer = first_tasks(tasks, episodes), first_tasks(tasks, planner_episodes)
        self.diagnosed = first_tasks(self.tasks, diagnosis_episodes) if diagnosis_episodes else None
        self.world_model_exam = WorldModelExam(world, probe_walks, test_walks, pushes, rank_layouts)
        protocol = {
            "episodes": episodes,
            "episodes_planner_table": planner_episodes,
            "episodes_diagnosis": diagnosis_episodes,
            "noise of Mode-1": reactive_noise,
            "steps": world.episode_steps,
            "layouts": "held out",
            "success": f"within {radius} px at the last step",
            "resolution": world.observation_shape[-1],
            "pushes": pushes,
            "intervals": "95 %: Wilson for shares, bootstrap over layouts for R2, Student's t for other means",
        }
        self.report = Report(name, protocol, targets, note)

    def run(self, stage: Examinee, seed: int, out: Path, training: Training) -> dict[str, float]:
        """Write `out/seed_<seed>.json` and `out/figures`; returns the metrics' values.

        With `train_transitions` up to 200 000, success counts as
        `mode2_success_200k` too.
        """
        stage.to(self.world.device)
        stage.eval()
        jepa, metric, planner = stage.jepa, stage.metric, _complete(self.planner, stage.metric)
        goal_energy = self.cost(metric=metric)
        cost = goal_energy if stage.cost is None else stage.cost

        def make_agent(world_model: WorldModel, energy: Cost, search: Planner, **how: Any) -> Acting:
            return self.agent(world_model=world_model, cost=energy, planner=search, seed=seed, **how)

        model = self.world_model_exam.run(jepa, goal_energy, planning_cost(planner, cost, jepa, seed), seed)
        with progress_bar() as bar:
            main = self._episodes(AgentPolicy(make_agent(jepa, cost, planner)), self.tasks, bar, "Mode-2")
            tables: dict[str, dict[str, Rows]] = {"planners": {"agent": main.rows()}}
            for name, other in self.planners.items():
                policy = AgentPolicy(make_agent(jepa, goal_energy, _complete(other, metric)))
                tables["planners"][name] = self._episodes(policy, self.fewer, bar, f"planner {name}").rows()
            if stage.policy is not None:
                tables["modes"] = {"mode2": main.rows(), **self._modes(stage, make_agent, seed, bar)}
            floors = self._floors(make_agent, seed, bar)
            if self.diagnosed is not None:
                runs = {"agent": main.first(len(self.diagnosed.layouts))}
                runs |= diagnose(
                    self.world,
                    self.diagnosed,
                    world_model=jepa,
                    cost=cost,
                    decode=model.probe,
                    search=self.search,
                    larger=None if self.larger is None else _complete(self.larger, metric),
                    make_agent=make_agent,
                    radius=self.radius,
                    batch=self.batch,
                    progress=bar,
                )
                tables["diagnosis"] = {name: run.rows() for name, run in runs.items()}
        metrics = _metrics(main.rows(), tables.get("modes")) | model.metrics
        if 0 < training.cost.get("train_transitions", 0) <= SMALL_DATA:
            metrics["mode2_success_200k"] = metrics["mode2_success"]
        report = self.report
        if stage.cost is not None:  # making it compares the critic's signature with the intrinsic cost: see `Cost`
            proven = {"intrinsic cost": "the same sha256 before and after every stage"}
            report = replace(report, protocol={**report.protocol, **proven})
        results = report.write(
            out,
            seed,
            metrics,
            {**training.cost, "ms_per_decision": metrics["ms_per_decision"].value},
            floors=floors,
            controls=model.controls | _controls(tables.get("modes")),
            tables=tables,
        )
        self._pictures(out / "figures", results)
        draw_all(
            out / "figures",
            self.world,
            jepa,
            goal_energy,
            cost,
            planner,
            model.probe,
            model.walks,
            make_agent,
            self.tasks,
            seed,
            self.radius,
        )
        return results.values

    def _modes(self, stage: Examinee, make_agent: Callable[..., Acting], seed: int, bar: Progress) -> dict[str, Rows]:
        """Mode-1, and Mode-2 with a quarter of its samples, by where its search starts."""
        assert stage.policy is not None
        jepa, cost, quarter = stage.jepa, stage.cost, _complete(self.quarter, stage.metric)
        beginner = untrained(stage.policy, seed)
        imitator = cloned(stage.policy, self.world, self.walker, jepa, seed, **self.cloning)
        reactive = {"mode": "reactive", "noise": self.reactive_noise}
        rows: dict[str, tuple[dict[str, Any], Tasks]] = {
            "mode1": ({"policy": stage.policy, **reactive}, self.tasks),
            "mode1_without_noise": ({"policy": stage.policy, **reactive, "noise": 0.0}, self.tasks),
            "behaviour_cloning": ({"policy": imitator, **reactive}, self.tasks),
            "quarter_warm": ({"policy": stage.policy}, self.tasks),
            "quarter_cold": ({}, self.fewer),
            "quarter_untrained": ({"policy": beginner}, self.fewer),
        }
        return {
            name: self._episodes(AgentPolicy(make_agent(jepa, cost, quarter, **how)), tasks, bar, name).rows()
            for name, (how, tasks) in rows.items()
        }

    def _episodes(self, policy: Policy, tasks: Tasks, bar: Progress, label: str) -> Episodes:
        return run_episodes(self.world, tasks, policy, radius=self.radius, batch=self.batch, progress=bar, label=label)

    def _floors(self, make_agent: Callable[..., Acting], seed: int, bar: Progress) -> Rows:
        """Rows of success at the last step, and at any step under NAME_ever."""
        truth = make_agent(TrueDynamics(self.world), PixelDistance(), self.search)
        runs: dict[str, tuple[Policy, Tasks]] = {
            "random": (RandomPolicy(seed), self.tasks),
            "straight": (StraightPolicy(seed), self.tasks),
            "drunkard": (DrunkardPolicy(seed), self.tasks),
            "true_dynamics_raw_distance": (AgentPolicy(truth), self.fewer),
            "expert": (ExpertPolicy(seed), self.tasks),
        }
        rows: Rows = {}
        for name, (policy, tasks) in runs.items():
            found = self._episodes(policy, tasks, bar, name.replace("_", " ")).rows()
            rows[name], rows[f"{name}_ever"] = found["success"], found["success_ever"]
        return rows

    def _pictures(self, folder: Path, results: Results) -> None:
        bars: dict[str, Figure] = {key: row for key, row in results.floors.items() if not key.endswith("_ever")}
        modes = {"Mode-1 (learned)": "mode1_success", "Mode-2 (learned)": "mode2_success"}
        learned = {label: results.metrics[key] for label, key in modes.items() if key in results.metrics}
        target = results.targets.get("mode2_success", {}).get("at_least")
        success_figure(folder / "success.png", bars | learned, tuple(learned), "Success at the last step", target)


def _metrics(agent: Rows, modes: Mapping[str, Rows] | None) -> Rows:
    """What the tables' rows are called in the exam."""
    metrics: Rows = {
        "mode2_success": agent["success"],
        "mode2_success_ever": agent["success_ever"],
        "ms_per_decision": agent["ms_per_decision"],
        "evaluations_per_decision": agent["evaluations"],
    }
    if modes is not None:
        times = [modes[mode]["ms_per_decision"].value for mode in ("mode2", "mode1")]
        metrics |= {
            "mode1_success": modes["mode1"]["success"],
            "mode1_speedup": mean([times[0] / times[1]]),
            "warm_start_success_quarter": modes["quarter_warm"]["success"],
            "behaviour_cloning_success": modes["behaviour_cloning"]["success"],
        }
    return metrics


def _controls(modes: Mapping[str, Rows] | None) -> dict[str, Rows]:
    """Rows that show what the policy's proposals are worth."""
    if modes is None:
        return {}
    starts = {"cold_start": "quarter_cold", "untrained_policy": "quarter_untrained"}
    return {"warm_start_success_quarter": {name: modes[row]["success"] for name, row in starts.items()}}


def _complete(planner: Planner | MakePlanner, metric: nn.Module | None) -> Planner:
    """A partial planner with its metric; a whole one as it is."""
    return planner(metric=metric) if callable(planner) else planner
