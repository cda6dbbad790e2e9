"""Mode-2 by dynamic programming on the learned model: descend the cost-to-go of a graph of imagined states.

Legend: B episodes, S candidates, H horizon, A action, D state, M numbers of the metric space, N nodes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from lightning_jepa.actor.planners.explorer import Explorer, bellman
from lightning_jepa.actor.planners.shooting import check_positive
from lightning_jepa.protocols import Cost, Planner, WorldModel
from lightning_jepa.types import Modulation, Plan


class GraphCost:
    """The steps still to go from a state: those of a node close to it, and the way to that node.

    Only nodes about as near as the nearest one count, because a long distance in the metric says nothing about walls.

    Args:
        nodes: in the metric space, [B, N, M].
        to_go: steps from each node to the goal, [B, N].
        unit: metric length of one step, [B].
        reach: metric distance within which nodes count beyond the nearest one, [B]. Where it is as wide as a wall is
            thick, the cost leaks through.
        metric: from states [..., D] to [..., M].
        memory_mb: bound on the distances held at once.
    """

    def __init__(
        self, nodes: Tensor, to_go: Tensor, unit: Tensor, reach: Tensor, metric: nn.Module, memory_mb: float
    ) -> None:
        self.nodes, self.to_go, self.unit, self.reach = nodes, to_go, unit, reach
        self.metric, self.memory_mb = metric, memory_mb

    def __call__(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, H, D] -> [B, S, H]; the goal is in the graph already."""
        b, n = self.to_go.shape
        points = self.metric(states).float().flatten(1, 2)
        piece = max(1, int(self.memory_mb * 2**20 // (4 * b * n)))
        return torch.cat([self._steps(p) for p in points.split(piece, 1)], 1).view(states.shape[:3])

    def _steps(self, points: Tensor) -> Tensor:
        distance = torch.cdist(points, self.nodes)
        near = distance <= distance.detach().amin(-1, keepdim=True) + self.reach[:, None, None]
        steps = distance / self.unit[:, None, None] + self.to_go[:, None]
        return steps.masked_fill(~near, torch.inf).amin(-1)


class GraphSearch:
    """Mode-2 by dynamic programming (paper section 3.1.2) over states that the world model imagines.

    Once for each goal an `Explorer` imagines how states are connected, and relaxation gives the steps from every node
    to the goal. From then on a planner of short horizon descends this cost-to-go, which replaces the cost it is given.

    The graph is built anew when `modulation.goal` is another tensor than in the call before (one per episode).

    Args:
        planner: searches under the graph's cost; a short horizon is enough.
        explorer: makes the graph; or what makes one of a `metric`.
        metric: from states [..., D] to a space [..., M] in which neighbours are told by distance; states if None.
        reach: nodes count for a state up to this share of the nodes' spacing beyond the nearest one.
        memory_mb: bound on the distances from nodes held at once while planning.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        planner: Planner,
        explorer: Callable[..., Explorer],
        metric: nn.Module | None,
        reach: float = 0.3,
        memory_mb: float = 256.0,
    ) -> None:
        check_positive(reach=reach, memory_mb=memory_mb)
        self.planner, self.explorer = planner, explorer(metric=metric)
        self.reach, self.memory_mb = reach, memory_mb
        self._goal: Tensor | None = None
        self._cost: GraphCost | None = None

    @property
    def horizon(self) -> int:
        """Actions in a plan."""
        return self.planner.horizon

    @property
    def action_bound(self) -> float:
        """Largest norm of an action."""
        return self.planner.action_bound

    @torch.no_grad()
    def plan(
        self,
        s: Tensor,
        world_model: WorldModel,
        cost: Cost,
        modulation: Modulation,
        start: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Plan:
        """See `protocols.Planner`; the first plan for a goal also spends the model steps of its graph."""
        spent = 0
        if self._cost is None or self._goal is not modulation.goal:
            self._cost = self.build(s, world_model, modulation.goal, generator)
            self._goal, spent = modulation.goal, self.explorer.evaluations
        plan = self.planner.plan(s, world_model, self._cost, modulation, start, generator)
        return Plan(plan.actions, plan.states, plan.cost, plan.evaluations + spent)

    @torch.no_grad()
    def build(self, s: Tensor, world_model: WorldModel, goal: Tensor, generator: Generator | None = None) -> GraphCost:
        """The graph's cost for episodes that stand at s [B, D] and have goals [B, D]."""
        graph = self.explorer.explore(s, goal, world_model, generator)
        straight = (graph.places - graph.places[:, :1]).norm(dim=-1)
        steps = straight / graph.unit[:, None]
        at_goal = steps.masked_fill(straight > graph.spacing[:, None], torch.inf)
        # the graphs of all episodes are one graph with as many parts
        parts = self.explorer.nodes * torch.arange(len(s), device=s.device)
        successor = (graph.successor + parts[:, None, None, None]).flatten(0, 1)
        edge = graph.steps.flatten(0, 1)
        to_go = bellman(successor, edge, at_goal.view(-1, 1), torch.ones_like(edge)).to_go.view_as(at_goal)
        # Where no way to the goal was imagined, the straight one is the best guess, and worse than any that was.
        worst = to_go.masked_fill(to_go.isinf(), 0).amax(1, keepdim=True)
        to_go = torch.where(to_go.isinf(), worst + steps, to_go)
        reach = self.reach * graph.spacing
        return GraphCost(graph.places, to_go, graph.unit, reach, self.explorer.metric, self.memory_mb)
