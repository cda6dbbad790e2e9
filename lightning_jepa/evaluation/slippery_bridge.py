"""The exam `slippery_bridge` of E3: does a planner know that a step may go wrong, and what that is worth.

Legend: N decisions, C crossings, D state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from lightning_jepa.actor.planners.scenarios import ScenarioPlanner
from lightning_jepa.actor.planners.tree import TreeSearch
from lightning_jepa.evaluation.energy_figures import risk_figure
from lightning_jepa.evaluation.episodes import share
from lightning_jepa.evaluation.probes import LinearProbe, fit_probe
from lightning_jepa.evaluation.report import Report, Trained
from lightning_jepa.evaluation.results import Rows, mean
from lightning_jepa.protocols import BranchingModel, EnergyModel, World
from lightning_jepa.types import Modulation, Training

Searcher = ScenarioPlanner | TreeSearch


class BridgeWorld(World, Protocol):
    """Rivers with a bridge and a safe way each, see `data_pipelines.worlds.slippery_bridge`."""

    layouts: Any
    middle: float
    unit: float
    first: float
    between: float
    slips: Tensor
    crossing: Tensor

    def starts(self, count: int, generator: Generator) -> Tensor:
        """States [B, 3]."""
        ...

    def ways(self) -> Tensor:
        """Where one gets, y in pixels [3]."""
        ...

    def expected(self, slips: Tensor) -> Tensor:
        """Expected cost of bridge and safe way, [...] -> [..., 2]."""
        ...


class Model(EnergyModel, BranchingModel, Protocol):
    """What planners of this exam need."""


class Examinee(Trained, Protocol):
    """A trained stage."""

    jepa: Model


class OffTheLine:
    """What a predicted state costs: its squared distance from the middle line, as read by a frozen linear readout."""

    def __init__(self, probe: LinearProbe, middle: float, unit: float) -> None:
        self.probe, self.middle, self.unit = probe, middle, unit

    def __call__(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, H, D], [B, S, H, 1] -> [B, S, H]."""
        return ((self.probe(states.float())[..., 1] - self.middle) / self.unit).square()


class SlipperyBridgeExam:
    """Measures what planners choose where a bridge is more or less slippery, for one seed.

    Args:
        world: with bridges.
        scenarios: planner over sampled futures; its own planner searches over the actions.
        simulations: of the tree search, for a decision.
        decisions: N, for each chance of a slip and kappa.
        kappas: weights of the deviation, rising, for the row on risk.
        probed: pictures that the readout is fitted to.
        targets, name, note: see `TwoRoomsExam`.
    """

    def __init__(
        self,
        *,
        world: BridgeWorld,
        scenarios: ScenarioPlanner,
        simulations: int = 60,
        decisions: int = 100,
        kappas: Sequence[float] = (0.0, 0.5, 1.0, 2.0),
        probed: int = 2000,
        targets: Mapping[str, Mapping[str, Any]] | None = None,
        name: str = "slippery_bridge",
        note: str | None = None,
    ) -> None:
        self.world, self.scenarios = world, scenarios
        self.simulations, self.decisions, self.kappas, self.probed = simulations, decisions, list(kappas), probed
        protocol = {
            "decisions": f"{decisions} for each chance of a slip",
            "layouts": "held out",
            "costs": "20 on the safe way, 5 over the bridge, 60 after a slip",
            "intervals": "95 %: Wilson for shares, Student's t for means",
        }
        self.report = Report(name, protocol, targets, note)

    @torch.no_grad()
    def run(self, stage: Examinee, seed: int, out: Path, training: Training) -> dict[str, float]:
        """Write `out/seed_<seed>.json` and `out/figures`; returns the metrics' values."""
        jepa, generator = stage.jepa, Generator().manual_seed(seed)
        stage.to(torch.device("cpu"))
        stage.eval()
        cost = OffTheLine(self._probe(jepa, generator), self.world.middle, self.world.unit)
        tree = TreeSearch([[1.0], [-1.0]], 3, self.simulations, most=2 * 60.0)
        planners: dict[str, Searcher] = {"tree": tree, "scenarios": self.scenarios}
        risks: dict[str, Rows] = {}
        for tenths in range(10):
            ids = self._with_slip(tenths, generator)
            risks[f"slip = 0.{tenths}"] = {
                name: share(self._choose(jepa, planner, cost, ids, generator)[:, 0] <= 0)
                for name, planner in planners.items()
            } | {"best": share(self.world.expected(torch.full((len(ids),), tenths / 10)).argmin(-1) == 1)}
        ids = self._with_slip(2, generator)
        averse = {
            f"kappa = {kappa:g}": {
                "safe": share(self._choose(jepa, self._averse(kappa), cost, ids, generator)[:, 0] <= 0)
            }
            for kappa in self.kappas
        }
        regret, best = self._regret(jepa, tree, cost, generator)
        rare = [risks[f"slip = 0.{tenths}"] for tenths in (0, 1)]
        metrics: Rows = {
            "safe_choice": risks["slip = 0.5"]["tree"],
            "safe_choice_scenarios": risks["slip = 0.5"]["scenarios"],
            "bridge_choice_where_slips_are_rare": mean([1 - row[name].value for row in rare for name in planners]),
            "tree_search_regret": mean((regret / best.mean()).tolist()),
        }
        results = self.report.write(out, seed, metrics, training.cost, tables={"risks": risks, "kappas": averse})
        risk_figure(out / "figures" / "risk.png", risks)
        return results.values

    def _probe(self, jepa: Model, generator: Generator) -> LinearProbe:
        """A readout of the agent's position from frozen states of training layouts, where agents do get."""
        ids = self._draw("train", self.probed, generator)
        crossed = torch.randint(4, (len(ids),), generator=generator)
        end = torch.randint(3, (len(ids),), generator=generator)
        y = torch.where(crossed == 0, self.world.middle, self.world.ways()[end])
        places = torch.stack([self.world.first + self.world.between * crossed, y], -1)
        states = jepa.encode(self.world.reset(ids, places)[:, None])[:, 0].float()
        return fit_probe(states, places, ids)

    def _choose(self, jepa: Model, planner: Searcher, cost: OffTheLine, ids: Tensor, generator: Generator) -> Tensor:
        """The plans [N, 3] at the beginning, in layouts [N]."""
        s = jepa.encode(self.world.reset(ids, self.world.starts(len(ids), generator))[:, None])[:, 0].float()
        return planner.plan(s, jepa, cost, Modulation(s), generator=generator).actions[..., 0]

    def _averse(self, kappa: float) -> ScenarioPlanner:
        return ScenarioPlanner(self.scenarios.planner, self.scenarios.scenarios, kappa=kappa)

    def _regret(self, jepa: Model, tree: TreeSearch, cost: OffTheLine, generator: Generator) -> tuple[Tensor, Tensor]:
        """Expected cost of what tree search does beyond that of expectimax on the true chances, and the latter's."""
        ids = self._draw("held_out", self.decisions, generator)
        observation = self.world.reset(ids, self.world.starts(len(ids), generator))
        regrets, best = [], []
        for crossing in range(3):
            s = jepa.encode(observation[:, None])[:, 0].float()
            search = TreeSearch(tree.actions.tolist(), 3 - crossing, tree.simulations, tree.most)
            action = search.plan(s, jepa, cost, Modulation(s)).actions[:, 0]
            expected = self.world.expected(self.world.slips[:, crossing])
            chosen = torch.where(action[:, 0] > 0, expected[:, 0], expected[:, 1])
            regrets.append(chosen - expected.amin(1))
            best.append(expected.amin(1))
            observation = self.world.step(action)
        return torch.cat(regrets), torch.cat(best)

    def _draw(self, split: str, count: int, generator: Generator) -> Tensor:
        ids = self.world.layouts.ids(split)
        return ids[torch.randint(len(ids), (count,), generator=generator)]

    def _with_slip(self, tenths: int, generator: Generator) -> Tensor:
        """Held-out layouts whose first bridge has this chance of a slip, [N]."""
        ids = self.world.layouts.ids("held_out")
        ids = ids[(self.world.layouts.factors(ids)[:, 0] * 10).round() == tenths]
        return ids[torch.randint(len(ids), (self.decisions,), generator=generator)]
