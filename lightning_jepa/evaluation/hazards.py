"""The exam's rows of E6 in a world that hurts: the critic against the truth, what it spares the planner, what u does.

Legend: N tasks, B episodes, Q states of each, T steps, D state, K intrinsic terms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import Progress
from torch import Generator, Tensor, nn

from lightning_jepa.cost.cost import Cost
from lightning_jepa.cost.critic import Critic
from lightning_jepa.cost.intrinsic import IntrinsicCost
from lightning_jepa.evaluation.cost_rank import spearman
from lightning_jepa.evaluation.episodes import (
    Acting,
    AgentPolicy,
    Episodes,
    Policy,
    first_tasks,
    progress_bar,
    run_episodes,
    share,
)
from lightning_jepa.evaluation.figures import critic_figure, dose_figure, paths_figure
from lightning_jepa.evaluation.floors import DrunkardPolicy, ExpertPolicy, RandomPolicy, StraightPolicy
from lightning_jepa.evaluation.one_shot import OneShot
from lightning_jepa.evaluation.report import Report, Trained
from lightning_jepa.evaluation.results import Rows, mean
from lightning_jepa.evaluation.states import encode_at
from lightning_jepa.evaluation.true_cost import CarefulExpert, cost_to_go
from lightning_jepa.evaluation.world import HazardWorld, draw_positions
from lightning_jepa.protocols import Planner, WorldModel
from lightning_jepa.types import Modulation, Tasks, Training


class Examinee(Trained, Protocol):
    """The trained critic with all that is below it."""

    jepa: WorldModel
    metric: nn.Module
    intrinsic: IntrinsicCost
    critic: Critic
    cost: Cost


class HazardsExam:
    """Measures what a critic is worth, for one seed.

    Args:
        world: with the terms `goal` and `pain` of the intrinsic cost, u in this order.
        tasks: the committed list of starts and goals.
        planner: Mode-2 of short horizon, which the critic's view lengthens.
        long: the same with a long one.
        slope: what makes the intrinsic cost of a `metric` for planning without a critic: a goal energy that slopes
            everywhere, as the saturated one says nothing beyond the horizon.
        agent: the agent, which lacks `world_model`, `cost`, `planner`, `seed` and `u`.
        pain: weight of pain where only one is looked at.
        doses: weights of pain of the dose-response row, rising.
        episodes: tasks of the row that the others are compared with.
        few_episodes: tasks of the others.
        steps: of an episode.
        batch, radius: see `TwoRoomsExam`.
        rank_layouts: tasks in whose layouts, and for whose goals, the critic is compared with the true cost to go.
        events: of the one-shot row.
        bandwidth: of the kernel critic, in the metric's unit.
        width: of the goal's energy in pixels, for the true cost.
        targets, name, note: see `TwoRoomsExam`.
    """

    def __init__(
        self,
        *,
        world: HazardWorld,
        tasks: Tasks,
        planner: Planner,
        long: Planner,
        slope: Callable[..., IntrinsicCost],
        agent: Callable[..., Acting],
        pain: float,
        doses: Sequence[float],
        episodes: int,
        few_episodes: int,
        steps: int,
        batch: int = 50,
        radius: float = 4.5,
        rank_layouts: int = 16,
        events: int = 100,
        bandwidth: float = 1.0,
        width: float = 2.45,
        targets: Mapping[str, Mapping[str, Any]] | None = None,
        name: str = "hazards",
        note: str | None = None,
    ) -> None:
        if list(doses) != sorted(doses) or len(doses) < 3 or pain not in doses:
            raise ValueError(
                f"evaluation.doses={list(doses)}: give at least three weights of pain, rising, "
                f"and pain={pain:g} among them"
            )
        self.world, self.batch, self.radius = world, batch, radius
        self.world.episode_steps = steps
        self.planner, self.long, self.slope, self.agent = planner, long, slope, agent
        self.pain, self.doses, self.width = pain, list(doses), width
        self.tasks, self.few = first_tasks(tasks, episodes), first_tasks(tasks, few_episodes)
        self.rank_layouts, self.events, self.bandwidth = rank_layouts, events, bandwidth
        protocol = {
            "episodes": episodes,
            "episodes of rows without critic and of other weights": few_episodes,
            "steps": steps,
            "layouts": "held out",
            "success": f"within {radius} px at the last step",
            "u": f"1 for the goal, {pain:g} for pain where nothing else is said",
            "pain": "of an episode: the sum over its steps of the share of the body in a hazard",
            "intrinsic cost": "the same sha256 before and after every stage",
            "intervals": "95 %: Wilson for shares, Student's t for means",
        }
        self.report = Report(name, protocol, targets, note)

    def run(self, stage: Examinee, seed: int, out: Path, training: Training) -> dict[str, float]:
        """Write `out/seed_<seed>.json` and `out/figures`; returns the metrics' values.

        Raises:
            ValueError: if the stage has no critic, or other terms than goal and pain.
        """
        if getattr(stage, "cost", None) is None:
            raise ValueError("this exam is the critic's: evaluate a checkpoint of train=critic or of distillation")
        if stage.intrinsic.names != ("goal", "pain"):
            raise ValueError(f"the intrinsic cost has the terms {list(stage.intrinsic.names)}; this exam: goal, pain")
        stage.to(self.world.device)
        stage.eval()
        blind = Cost(self.slope(metric=stage.metric))  # no critic

        def acting(cost: Cost, planner: Planner, pain: float) -> AgentPolicy:
            made = self.agent(world_model=stage.jepa, cost=cost, planner=planner, seed=seed, u=[1.0, pain])
            return AgentPolicy(made)

        ranks = {f"u_pain {pain:g}": self._rank(stage, pain, seed) for pain in (0.0, self.pain, self.doses[-1])}
        shots = OneShot(self.world, stage.jepa, stage.intrinsic, stage.metric, self.bandwidth)
        bad, harmless = (shots(self.events, Generator().manual_seed(seed), control) for control in (False, True))
        with progress_bar() as bar:
            runs = {
                "short_horizon_with_critic": self._episodes(
                    acting(stage.cost, self.planner, self.pain), self.tasks, bar, "short horizon with critic"
                ),
                "short_horizon_without": self._episodes(
                    acting(blind, self.planner, self.pain), self.few, bar, "short horizon, no critic"
                ),
                "long_horizon": self._episodes(acting(blind, self.long, self.pain), self.few, bar, "long horizon"),
            }
            doses = {
                pain: self._episodes(acting(stage.cost, self.planner, pain), self.few, bar, f"u_pain {pain:g}")
                for pain in self.doses
                if pain != self.pain
            }
            floors = self._floors(stage, seed, bar)
        doses[self.pain] = runs["short_horizon_with_critic"].first(len(self.few.layouts))
        horizons = {name: self._rows(run) for name, run in runs.items()}
        table = {f"u_pain = {pain:g}": self._rows(doses[pain]) for pain in self.doses}
        pains = torch.tensor([row["pain"].value for row in table.values()])
        response = float(spearman(torch.tensor(self.doses), pains))
        spent = [horizons[name]["evaluations"].value for name in ("short_horizon_with_critic", "long_horizon")]
        metrics = {
            "critic_rank_correlation": mean(torch.stack(list(ranks.values())).mean(0).tolist()),
            **{name: rows["success"] for name, rows in horizons.items()},
            "evaluations_ratio": mean([spent[0] / spent[1]]),
            "one_shot_rise": mean(bad.near.tolist()),
            "one_shot_elsewhere": mean(bad.elsewhere.tolist()),
            "dose_response": mean([response]),
            "ms_per_decision": horizons["short_horizon_with_critic"]["ms_per_decision"],
        }
        reached = [horizons[name]["success"].value for name in ("short_horizon_with_critic", "long_horizon")]
        if reached[1] > 0:
            metrics["horizon_success_ratio"] = mean([reached[0] / reached[1]])
        results = self.report.write(
            out,
            seed,
            metrics,
            {**training.cost, "ms_per_decision": metrics["ms_per_decision"].value},
            floors=floors,
            controls={
                "critic_rank_correlation": {
                    "goal_energy": mean(self._rank(stage, self.pain, seed, blind).tolist()),
                    **{name: mean(found.tolist()) for name, found in ranks.items()},
                },
                "one_shot_rise": {"harmless_event": mean(harmless.near.tolist())},
            },
            tables={"horizons": horizons, "doses": table},
        )
        self._pictures(out / "figures", stage, doses, table)
        return results.values

    def _rank(self, stage: Examinee, pain: float, seed: int, cost: Cost | None = None, states: int = 96) -> Tensor:
        """Rank correlation of the critic (or of a cost) with the true cost to go over states of a task: [layouts]."""
        some = first_tasks(self.tasks, min(self.rank_layouts, len(self.tasks.layouts)))
        ids, goals = some.layouts, some.goals
        generator = Generator().manual_seed(seed)
        place = draw_positions(self.world, ids.repeat_interleave(states), generator).unflatten(0, (len(ids), states))
        true = self._truth(stage, some, pain).at(place[:, None])[:, 0, :, 0]
        return spearman(self._judged(stage, ids, place, goals, pain, cost), true)

    @torch.no_grad()
    def _judged(
        self, stage: Examinee, ids: Tensor, places: Tensor, goals: Tensor, pain: float, cost: Cost | None = None
    ) -> Tensor:
        """What the critic expects (or a cost says) at places [B, Q, 2]: [B, Q]."""
        s = encode_at(self.world, stage.jepa, ids.repeat_interleave(places.shape[1]), places.flatten(0, 1))
        s = s.unflatten(0, places.shape[:2])
        g = encode_at(self.world, stage.jepa, ids, goals)
        modulation = Modulation(g, torch.tensor([1.0, pain]).to(g).expand(len(g), 2))
        if cost is None:
            return stage.critic(s, modulation)
        return cost(s[:, :, None], s.new_zeros(*s.shape[:2], 1, 2), modulation)[:, :, 0]

    def _truth(self, stage: Examinee, tasks: Tasks, pain: float) -> Any:
        return cost_to_go(self.world, tasks, 1.0, pain, stage.critic.discount, self.width)

    def _episodes(self, policy: Policy, tasks: Tasks, bar: Progress, label: str) -> Episodes:
        return run_episodes(self.world, tasks, policy, radius=self.radius, batch=self.batch, progress=bar, label=label)

    def _rows(self, run: Episodes) -> Rows:
        """With how much it hurt, and in how many episodes it did."""
        self.world.reset(run.tasks.layouts, run.tasks.starts)
        pain = self.world.share_in(run.positions.to(self.world.device), self.world.hazards)
        return {**run.rows(), "pain": mean(pain.sum(1).tolist()), "hurt": share(pain.sum(1) > 0)}

    def _floors(self, stage: Examinee, seed: int, bar: Progress) -> Rows:
        careful = CarefulExpert(1.0, self.pain, stage.critic.discount, self.width)
        policies: dict[str, tuple[Policy, Tasks]] = {
            "random": (RandomPolicy(seed), self.tasks),
            "straight": (StraightPolicy(seed), self.tasks),
            "drunkard": (DrunkardPolicy(seed), self.tasks),
            "expert": (ExpertPolicy(seed), self.tasks),
            "careful_expert": (careful, self.few),
        }
        floors: Rows = {}
        for name, (policy, tasks) in policies.items():
            rows = self._rows(self._episodes(policy, tasks, bar, name.replace("_", " ")))
            floors[name], floors[f"{name}_pain"] = rows["success"], rows["pain"]
        return floors

    def _pictures(
        self, folder: Path, stage: Examinee, doses: Mapping[float, Episodes], table: Mapping[str, Rows]
    ) -> None:
        some = first_tasks(self.few, min(4, len(self.few.layouts)))
        truth = self._truth(stage, some, self.pain)
        h, w = truth.free.shape[-2:]
        thin = slice(None, None, 4)  # every other pixel
        y, x = torch.meshgrid(torch.arange(h)[thin], torch.arange(w)[thin], indexing="ij")
        places = truth.low + truth.pitch * torch.stack([x, y], -1).flatten(0, 1).to(truth.low)
        judged = self._judged(stage, some.layouts, places.expand(len(some.layouts), -1, -1), some.goals, self.pain)
        self.world.reset(some.layouts, some.starts)
        walls, hazards = self.world.walls.cpu(), self.world.hazards.cpu()
        critic_figure(
            folder / "critic.png",
            walls,
            hazards,
            some.goals,
            judged.view(len(walls), *x.shape),
            truth.values[:, 0, thin, thin],
            truth.free[:, thin, thin],
            truth.low,
            4 * truth.pitch,
        )
        paths = {pain: doses[pain].positions[: len(walls)] for pain in self.doses}
        paths_figure(folder / "paths.png", walls, hazards, some.starts, some.goals, paths)
        dose_figure(folder / "dose_response.png", self.doses, list(table.values()))
