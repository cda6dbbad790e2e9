"""The exam E4: a hierarchy of world models, and planning with it, in mazes or rooms never seen before.

Legend: N tasks, D state, K horizons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.progress import Progress
from torch import Tensor, nn

from lightning_jepa.evaluation.episodes import (
    Acting,
    AgentPolicy,
    Episodes,
    Policy,
    first_tasks,
    progress_bar,
    run_episodes,
)
from lightning_jepa.evaluation.floors import (
    DrunkardPolicy,
    ExpertPolicy,
    PixelDistance,
    RandomPolicy,
    StraightPolicy,
    TrueDynamics,
)
from lightning_jepa.evaluation.level_figures import level_figure, subgoal_figure
from lightning_jepa.evaluation.levels import LevelRows, Lifted, level_rows
from lightning_jepa.evaluation.report import Report, Trained
from lightning_jepa.evaluation.results import Figure, Rows, mean
from lightning_jepa.evaluation.subgoals import Guided, OracleSubgoals, RandomSubgoals, ShuffledMacros, SubgoalTrace
from lightning_jepa.evaluation.world import ExamWorld
from lightning_jepa.protocols import Cost, Planner, WorldModel
from lightning_jepa.types import Tasks, Training

MakePlanner = Callable[..., Planner]
SHOWN = 4  # episodes in the picture
SAME_TASKS = "headline_on_the_tasks_of_others"


class GuidedPlanner(Planner, Guided, Protocol):
    """A hierarchical planner."""


class Examinee(Trained, Protocol):
    """A trained stack of levels."""

    jepa: Lifted
    metric: nn.Module


class HierarchyExam:
    """Measures every row of E4, for one seed.

    Args:
        world: mazes or rooms.
        tasks: committed ones, for each class of ways; the hardest class last.
        classes: its name, such as "5_7".
        planners: hierarchical Mode-2, the one in the headline first.
        flat: planners of level 1 alone; the first is compared at equal evaluations, the best of them by its price.
        search: minimises the cost it is given, for the true dynamics' floor.
        beneath: what makes a hierarchical planner of its `planners`, for the controls.
        lowest: level 1 of it.
        cost: the goal's energy, which lacks its `metric`.
        agent: which lacks `world_model`, `cost`, `planner` and `seed`.
        distractor: a factor that means nothing, which the levels above the first have to lose; none if there is none.
        macro_bound: largest norm of a random white macro-action.
        episodes: tasks of each class for the headline's row and the floors.
        few_episodes: of the others.
        steps: of an episode.
        horizon: steps of level 1 that levels look ahead.
        fit_walks, test_walks: see `level_rows`.
        batch, radius, targets, name, note: see `TwoRoomsExam`.
    """

    def __init__(
        self,
        *,
        world: ExamWorld,
        tasks: Sequence[Tasks],
        classes: Sequence[str],
        planners: Mapping[str, GuidedPlanner],
        flat: Mapping[str, Planner | MakePlanner],
        search: Planner,
        beneath: Callable[..., Planner],
        lowest: Planner,
        cost: Callable[..., Cost],
        agent: Callable[..., Acting],
        distractor: str | None = None,
        macro_bound: float = 2.5,
        episodes: int = 100,
        few_episodes: int = 40,
        steps: int = 250,
        horizon: int = 60,
        fit_walks: int = 2000,
        test_walks: int = 400,
        batch: int = 50,
        radius: float = 4.5,
        targets: Mapping[str, Mapping[str, Any]] | None = None,
        name: str = "maze",
        note: str | None = None,
    ) -> None:
        self.world, self.batch, self.radius = world, batch, radius
        self.world.episode_steps = steps
        self.planners, self.flat, self.search = dict(planners), dict(flat), search
        self.beneath, self.lowest, self.cost, self.agent = beneath, lowest, cost, agent
        self.distractor, self.macro_bound = distractor, macro_bound
        named = list(zip(classes, tasks, strict=True))
        self.tasks = {key: first_tasks(some, episodes) for key, some in named}
        self.few = {key: first_tasks(some, few_episodes) for key, some in named}
        self.horizon, self.fit_walks, self.test_walks = horizon, fit_walks, test_walks
        protocol = {
            "episodes": episodes,
            "episodes of other planners and of controls": few_episodes,
            "steps": steps,
            "layouts": "held out",
            "success": f"within {radius} px at the last step",
            "resolution": world.observation_shape[-1],
            "intervals": "95 %: Wilson for shares, bootstrap over layouts for R2, Student's t for other means",
        }
        self.report = Report(name, protocol, targets, note)

    def run(self, stage: Examinee, seed: int, out: Path, training: Training) -> dict[str, float]:
        """Write `out/seed_<seed>.json` and `out/figures`; returns the metrics' values.

        Raises:
            ValueError: if the stage has one level alone.
        """
        depth = getattr(stage.jepa, "depth", 1)
        if depth < 2:
            raise ValueError("this exam is a hierarchy's: evaluate a checkpoint of train=level2 or above")
        for stride in (stage.jepa.stride(number) for number in range(2, depth + 1)):
            if self.horizon // 2 % stride:
                raise ValueError(
                    f"errors are measured {self.horizon // 2} and {self.horizon} steps ahead, a level has steps of "
                    f"{stride}: set evaluation.horizon to an even multiple of {stride}"
                )
        stage.to(self.world.device)
        stage.eval()
        levels = level_rows(self.world, stage.jepa, self.fit_walks, self.test_walks, self.horizon, seed)
        tables: dict[str, dict[str, Rows]] = {}
        floors: Rows = {}
        shown: Episodes | None = None
        with progress_bar() as bar:
            for key in self.tasks:
                runs, wanted = self._planned(stage, key, seed, bar)
                shown = next(iter(runs.values()))
                tables[key] = {name: run.rows() for name, run in runs.items()}
                tables[key][SAME_TASKS] = next(iter(runs.values())).first(len(self.few[key].layouts)).rows()
                floors |= self._floors(key, seed, bar)
        assert shown is not None
        metrics = self._metrics(tables, levels)
        results = self.report.write(
            out,
            seed,
            metrics,
            {**training.cost, "ms_per_decision": metrics["ms_per_decision"].value},
            floors=floors,
            tables=tables | {"levels": {f"level {n}": rows.r2 for n, rows in enumerate(levels, 1)}},
        )
        held = ["agent_x", "agent_y"] + ([] if self.distractor is None else [self.distractor])
        level_figure(out / "figures" / "levels.png", levels, held)
        self.world.reset(shown.tasks.layouts, shown.tasks.starts)
        subgoals = levels[1].place(wanted.float()).cpu()
        subgoal_figure(out / "figures" / "paths.png", self.world.walls.cpu(), shown, subgoals)
        return results.values

    def _planned(self, stage: Examinee, key: str, seed: int, bar: Progress) -> tuple[dict[str, Episodes], Tensor]:
        """Every planner on the tasks of a class; and subgoals of the headline's in some episodes, [B, T, D']."""
        model = stage.jepa
        energy = self.cost(metric=stage.metric)
        oracle = OracleSubgoals(self.world, model, model.stride(2))
        drawn = RandomSubgoals(model.above(2).action_size, self.macro_bound)

        def acting(planner: Planner, world_model: WorldModel = model, told: Any = None) -> AgentPolicy:
            made = self.agent(world_model=world_model, cost=energy, planner=planner, seed=seed)
            return AgentPolicy(made, told)

        first, *others = self.planners
        headline = SubgoalTrace(acting(self.planners[first]), self.planners[first], SHOWN)
        policies: dict[str, tuple[Policy, Tasks]] = {
            f"hierarchical_{first}": (headline, self.tasks[key]),
            **{f"hierarchical_{name}": (acting(self.planners[name]), self.few[key]) for name in others},
        }
        for name, planner in self.flat.items():
            whole = planner(metric=stage.metric) if callable(planner) else planner
            policies[f"flat_{name}"] = (acting(whole), self.few[key])
        policies |= {
            "oracle_subgoals": (
                acting(self.beneath(planners={"level1": self.lowest, "level2": oracle}), told=oracle.prepare),
                self.few[key],
            ),
            "random_subgoals": (acting(self.beneath(planners={"level1": self.lowest, "level2": drawn})), self.few[key]),
            "shuffled_macros": (acting(self.planners[first], ShuffledMacros(model)), self.few[key]),
        }
        runs = {
            name: self._episodes(policy, tasks, bar, f"{key} {name.replace('_', ' ')}")
            for name, (policy, tasks) in policies.items()
        }
        return runs, headline.wanted

    def _floors(self, key: str, seed: int, bar: Progress) -> Rows:
        dreamer = self.agent(world_model=TrueDynamics(self.world), cost=PixelDistance(), planner=self.search, seed=seed)
        policies: dict[str, tuple[Policy, Tasks]] = {
            "random": (RandomPolicy(seed), self.tasks[key]),
            "straight": (StraightPolicy(seed), self.tasks[key]),
            "drunkard": (DrunkardPolicy(seed), self.tasks[key]),
            "true_dynamics_raw_distance": (AgentPolicy(dreamer), self.few[key]),
            "expert": (ExpertPolicy(seed), self.tasks[key]),
        }
        rows: Rows = {}
        for name, (policy, tasks) in policies.items():
            run = self._episodes(policy, tasks, bar, f"{key} {name.replace('_', ' ')}")
            rows[f"{name}_{key}"] = run.rows()["success"]
        return rows

    def _metrics(self, tables: Mapping[str, Mapping[str, Rows]], levels: list[LevelRows]) -> Rows:
        ours, equal = f"hierarchical_{next(iter(self.planners))}", f"flat_{next(iter(self.flat))}"
        hardest = tables[list(tables)[-1]]
        best = max((f"flat_{name}" for name in self.flat), key=lambda name: hardest[name]["success"].value)
        ratio = hardest[ours]["evaluations"].value / hardest[best]["evaluations"].value
        gain = hardest[SAME_TASKS]["success"].value - hardest[equal]["success"].value
        rows: Rows = {}
        for key, table in tables.items():
            rows[f"hierarchical_success_{key}"] = table[ours]["success"]
            rows[f"flat_success_{key}"] = table[equal]["success"]
        rows |= {
            "gain_over_flat": mean([gain]),
            "evaluations_ratio": mean([ratio]),
            "ms_per_decision": hardest[ours]["ms_per_decision"],
        }
        lowest = levels[0].errors
        for number, level in enumerate(levels, 1):
            for ahead in (self.horizon // 2, self.horizon):
                rows[f"level{number}_error_{ahead}"] = mean(level.errors[ahead].tolist())
                if number > 1:
                    rows[f"level{number}_gain_{ahead}"] = mean((lowest[ahead] - level.errors[ahead]).tolist())
            if self.distractor is not None:
                rows[f"distractor_probe_s{number}"] = level.r2[self.distractor]
            rows[f"room_probe_s{number}"] = _worse(level.r2["agent_x"], level.r2["agent_y"])
        return rows

    def _episodes(self, policy: Policy, tasks: Tasks, bar: Progress, label: str) -> Episodes:
        return run_episodes(self.world, tasks, policy, radius=self.radius, batch=self.batch, progress=bar, label=label)


def _worse(one: Figure, other: Figure) -> Figure:
    return min(one, other, key=lambda figure: figure.value)
