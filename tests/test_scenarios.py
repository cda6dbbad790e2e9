"""Planning over many futures: F(a) = mean of the worst share of the scenarios' costs + kappa std."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_jepa.actor.planners.cem import CEM
from lightning_jepa.actor.planners.scenarios import ScenarioPlanner
from lightning_jepa.actor.planners.tree import TreeSearch
from lightning_jepa.types import Modulation


class Graph:
    """A planner with a cost of its own."""

    horizon, action_bound = 1, 1.0

    def plan(self, *_: Any) -> Any:
        raise NotImplementedError

    def build(self, *_: Any) -> Any:
        raise NotImplementedError


def test_a_tree_is_not_searched_in_scenarios() -> None:
    """It branches over what may happen by itself."""
    with pytest.raises(ValueError, match="TreeSearch plans by more than what sequences cost"):
        ScenarioPlanner(TreeSearch([[0.0], [1.0]], 2, 10, most=1.0), scenarios=4)


class Gamble:
    """A world model of one number: actions above 0 gamble (0 or 2 by chance), others are safe (1.2)."""

    noise = 1

    def scenarios(self, s: Tensor, actions: Tensor, uniform: Tensor) -> Tensor:
        outcome = torch.where(uniform[:, :, 0] < 0.5, 0.0, 2.0)  # [M, H]
        gambles = (actions[..., :1] > 0)[:, :, None]
        return torch.where(gambles, outcome[..., None], 1.2)


def squares(states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
    return states[..., 0]


@pytest.mark.parametrize(
    ("arguments", "gambles"),
    [({}, True), ({"kappa": 1.0}, False), ({"tail": 0.25}, False), ({"tail": 1 / 64}, False), ({"kappa": 0.1}, True)],
)
def test_how_much_risk_is_taken(arguments: dict[str, float], gambles: bool) -> None:
    """The mean of a gamble (1) is below what is safe (1.2), its worst case (2) and mean + deviation are not."""
    cem = CEM(samples=16, iterations=2, elites=4, horizon=1, action_size=1, action_bound=1.0)
    planner = ScenarioPlanner(cem, 64, **arguments)
    s, modulation = torch.zeros(2, 1), Modulation(torch.zeros(2, 1))
    plan = planner.plan(s, Gamble(), squares, modulation, generator=torch.Generator().manual_seed(0))
    assert ((plan.actions > 0).all() if gambles else (plan.actions <= 0).all()).item()
    assert plan.evaluations == 64 * 16 * 2
    assert plan.states.shape == (2, 1, 1)


@pytest.mark.parametrize("memory_mb", [256.0, 0.001])
def test_all_candidates_of_a_plan_meet_the_same_futures(memory_mb: float) -> None:
    """In all iterations, and however small the pieces are that fit into memory: states of all scenarios count there."""

    class Listening(Gamble):
        def __init__(self) -> None:
            self.heard: list[Tensor] = []
            self.asked: list[int] = []

        def scenarios(self, s: Tensor, actions: Tensor, uniform: Tensor) -> Tensor:
            self.heard.append(uniform)
            self.asked.append(actions.shape[1])
            return super().scenarios(s, actions, uniform)

    model, s = Listening(), torch.zeros(2, 1)
    cem = CEM(samples=16, iterations=2, elites=4, horizon=1, action_size=1, action_bound=1.0, memory_mb=memory_mb)
    ScenarioPlanner(cem, 64).plan(s, model, squares, Modulation(s), generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(heard, model.heard[0]) for heard in model.heard)
    most = max(1, int(memory_mb * 2**20 // (2 * 64 * 4)))
    assert max(model.asked) == min(most, 16)
    assert sum(model.asked) == 32


def test_judged_by_the_worst_share_and_the_deviation() -> None:
    """mean of the worst `tail` + kappa std."""
    totals = torch.tensor([[4.0, 1.0, 3.0, 0.0]])
    judge = {"mean": ScenarioPlanner(None, 4), "cvar": ScenarioPlanner(None, 4, tail=0.5)}  # type: ignore[arg-type]
    assert judge["mean"].judged(totals).item() == 2
    assert judge["cvar"].judged(totals).item() == 3.5
    hundred = torch.arange(100.0)
    for worst in (7, 14, 55):
        cvar = ScenarioPlanner(None, 100, tail=worst / 100).judged(hundred)  # type: ignore[arg-type]
        assert cvar.item() == pytest.approx(hundred[-worst:].mean().item())
    risky = ScenarioPlanner(None, 4, kappa=2.0).judged(totals)  # type: ignore[arg-type]
    torch.testing.assert_close(risky, 2 + 2 * totals.std(-1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScenarioPlanner(None, 0), "scenarios"),  # type: ignore[arg-type]
        (lambda: ScenarioPlanner(None, 4, tail=0.0), "tail"),  # type: ignore[arg-type]
        (lambda: ScenarioPlanner(None, 1, kappa=1.0), "two scenarios"),  # type: ignore[arg-type]
        (lambda: ScenarioPlanner(None, 4, kappa=-1.0), "no reward for risk"),  # type: ignore[arg-type]
        (lambda: ScenarioPlanner(Graph(), 4), "Graph plans by more than what sequences cost"),
    ],
)
def test_what_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
