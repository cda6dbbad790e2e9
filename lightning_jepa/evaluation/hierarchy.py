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
from lightning_jepa.evaluation.subgoals import Guided, JudgedAbove, OracleSubgoals, RandomSubgoals, SubgoalTrace
from lightning_jepa.evaluation.walks import Walker
from lightning_jepa.evaluation.world import ExamWorld
from lightning_jepa.protocols import Cost, Planner
from lightning_jepa.types import Tasks, Training

MakePlanner = Callable[..., Planner]
SHOWN = 4  # episodes in the picture
HEADLINE = "hierarchical"
SAME_TASKS = "headline_on_the_tasks_of_others"


class GuidedPlanner(Planner, Guided, Protocol):
    """A hierarchical planner."""

    judged: int | None  # the level whose states the agent's own cost judges
    depth: int
    lowest: Planner

    def led_by(self, leader: Planner) -> GuidedPlanner:
        """The same level 1, and another planner of level 2."""
        ...


class Examinee(Trained, Protocol):
    """A trained stack of levels, with a critic of one of them or without."""

    jepa: Lifted
    metric: nn.Module
    cost: Cost | None


class HierarchyExam:
    """Measures every row of E4, for one seed.

    Args:
        world: mazes or rooms.
        tasks: committed ones, for each class of ways; the hardest class last.
        classes: its name, such as "5_7".
        planner: hierarchical Mode-2, the one in the headline.
        planners: others; those that say which level is judged minimise that cost too.
        flat: planners of level 1 alone; the first is compared at equal evaluations, the best of them by its price.
        search: minimises the cost it is given, for the true dynamics' floor.
        cost: the goal's energy, which lacks its `metric`; where a stage has a critic, the headline's planner
            minimises its cost, at the level that it says is judged.
        agent: which lacks `world_model`, `cost`, `planner` and `seed`.
        walker: who collected the training data, and makes walks to probe levels on.
        distractor: a factor that means nothing, which the levels above the first have to lose; none if there is none.
        macro_bound: largest norm of a random white macro-action.
        ahead: steps that a true subgoal is away, such that level 1 can see as far.
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
        planner: GuidedPlanner,
        flat: Mapping[str, Planner | MakePlanner],
        search: Planner,
        cost: Callable[..., Cost],
        agent: Callable[..., Acting],
        walker: Walker,
        planners: Mapping[str, GuidedPlanner] | None = None,
        distractor: str | None = None,
        macro_bound: float = 2.5,
        ahead: int = 5,
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
        if not hasattr(planner, "led_by"):
            raise ValueError(
                "this exam is about planning with a hierarchy: choose planner=hierarchical, or another of conf/planner "
                "that begins so"
            )
        self.planner, self.planners, self.flat, self.search = planner, dict(planners or {}), dict(flat), search
        self.cost, self.agent, self.walker = cost, agent, walker
        self.distractor, self.macro_bound, self.ahead = distractor, macro_bound, ahead
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
            "evaluations": "model steps of all levels, for an episode by itself, which plans anew at its own times",
            "resolution": world.observation_shape[-1],
            "intervals": "95 %: Wilson for shares, bootstrap over layouts for R2, Student's t for other means",
        }
        self.report = Report(name, protocol, targets, note)

    def run(self, stage: Examinee, seed: int, out: Path, training: Training) -> dict[str, float]:
        """Write `out/seed_<seed>.json` and `out/figures`; returns the metrics' values.

        Raises:
            ValueError: if the stage has one level alone or fewer than a planner, a step of a level does not fit the
                horizon, or a critic's cost has no level to judge.
        """
        depth = getattr(stage.jepa, "depth", 1)
        if depth < 2:
            raise ValueError("this exam is a hierarchy's: evaluate a checkpoint of train=level2 or above")
        if stage.cost is not None and self.planner.judged is None:
            raise ValueError(
                "this checkpoint has a critic, and the planner does not ask it: set planner.judged to its level "
                "(critic.stage.level)"
            )
        everyone = {"planner": self.planner, **self.planners}
        blind = [name for name, planner in everyone.items() if stage.cost is None and (planner.judged or 1) > 1]
        if blind:
            raise ValueError(
                f"{', '.join(blind)}: asks a critic of a level above the first, and this checkpoint has none: train "
                "one (critic=ways_level2, stage critic), or choose planner=hierarchical_graph, which needs none"
            )
        for name, planner in everyone.items():
            if planner.depth > depth:
                raise ValueError(
                    f"the planner {name!r} has {planner.depth} levels, the checkpoint {depth}: stack another "
                    f"(train=level{depth + 1}), or leave that one out (~evaluation.planners.{name})"
                )
        for stride in (stage.jepa.stride(number) for number in range(2, depth + 1)):
            if self.horizon // 2 % stride:
                raise ValueError(
                    f"errors are measured {self.horizon // 2} and {self.horizon} steps ahead, a level has steps of "
                    f"{stride}: set evaluation.horizon to an even multiple of {stride}"
                )
        stage.to(self.world.device)
        stage.eval()
        walks = (self.walker, self.fit_walks, self.test_walks, self.horizon)
        levels = level_rows(self.world, stage.jepa, *walks, seed)
        tables: dict[str, dict[str, Rows]] = {}
        floors: Rows = {}
        shown: Episodes | None = None
        with progress_bar() as bar:
            for key in self.tasks:
                runs, wanted = self._planned(stage, key, seed, bar)
                shown = runs[HEADLINE]
                tables[key] = {name: run.rows() for name, run in runs.items()}
                tables[key][SAME_TASKS] = shown.first(len(self.few[key].layouts)).rows()
                floors |= self._floors(key, seed, bar)
        assert shown is not None
        metrics = self._metrics(tables, levels)
        results = self.report.write(
            out,
            seed,
            metrics,
            {**training.cost, "ms_per_decision": metrics["ms_per_decision"].value},
            floors=floors,
            tables=tables | {"levels": _held(levels), "errors": _ahead(levels, (self.horizon // 2, self.horizon))},
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
        goal = self.cost(metric=stage.metric)
        judge = goal if stage.cost is None else stage.cost
        oracle = OracleSubgoals(self.world, model, self.ahead)
        drawn = RandomSubgoals(model.above(2).action_size, self.macro_bound)

        def acting(planner: Planner, cost: Cost = goal, told: Any = None) -> AgentPolicy:
            made = self.agent(world_model=model, cost=cost, planner=planner, seed=seed)
            return AgentPolicy(made, told)

        headline = SubgoalTrace(acting(self.planner, judge), self.planner, SHOWN)
        policies: dict[str, tuple[Policy, Tasks]] = {HEADLINE: (headline, self.tasks[key])}
        for name, planner in self.planners.items():
            policies[f"{HEADLINE}_{name}"] = (acting(planner, goal if planner.judged is None else judge), self.few[key])
        for name, flat in self.flat.items():
            whole = flat(metric=stage.metric) if callable(flat) else flat
            policies[f"flat_{name}"] = (acting(whole), self.few[key])
        judged = self.planner.judged or 1
        if stage.cost is not None and judged > 1:
            above = JudgedAbove(stage.cost, lambda states: model.lift(states, judged))
            policies["critic_alone"] = acting(self.planner.lowest, above), self.few[key]
        policies["oracle_subgoals"] = acting(self.planner.led_by(oracle), judge, oracle.prepare), self.few[key]
        policies["random_subgoals"] = acting(self.planner.led_by(drawn), judge), self.few[key]
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
        ours, equal = HEADLINE, f"flat_{next(iter(self.flat))}"
        hardest = tables[list(tables)[-1]]
        best = max((f"flat_{name}" for name in self.flat), key=lambda name: hardest[name]["success"].value)
        spent = {name: hardest[name]["evaluations"].value for name in (ours, best, equal)}
        gain = hardest[SAME_TASKS]["success"].value - hardest[equal]["success"].value
        rows: Rows = {}
        for key, table in tables.items():
            rows[f"hierarchical_success_{key}"] = table[ours]["success"]
            rows[f"flat_success_{key}"] = table[equal]["success"]
        rows |= {
            "gain_over_flat": mean([gain]),
            "evaluations_to_flat": mean([spent[ours] / spent[equal]]),
            "evaluations_ratio": mean([spent[ours] / spent[best]]),
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


def _held(levels: Sequence[LevelRows]) -> dict[str, Rows]:
    """What each level holds, and what one with random weights would."""
    rows: dict[str, Rows] = {}
    for number, level in enumerate(levels, 1):
        rows |= {f"level {number}": level.r2, f"level {number}, random weights": level.random}
    return rows


def _ahead(levels: Sequence[LevelRows], horizons: Sequence[int]) -> dict[str, Rows]:
    """Errors of each level by steps ahead, and of its controls."""
    rows: dict[str, Rows] = {}
    for number, level in enumerate(levels, 1):
        found = {"": level.errors, ", actions of another walk": level.mistaken, ", staying": level.staying}
        for name, errors in found.items():
            rows[f"level {number}{name}"] = {f"{ahead} steps": mean(errors[ahead].tolist()) for ahead in horizons}
    return rows


def _worse(one: Figure, other: Figure) -> Figure:
    return min(one, other, key=lambda figure: figure.value)
