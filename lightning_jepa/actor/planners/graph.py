"""Mode-2 by dynamic programming on the learned model: descend the cost-to-go of a graph of imagined states.

Legend: B episodes, S candidates, H horizon, A action, D state, M numbers of the metric space, N nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from lightning_jepa.actor.planners.explorer import Explorer, Graph, bellman
from lightning_jepa.actor.planners.scouts import Scouts
from lightning_jepa.actor.planners.shooting import check_positive
from lightning_jepa.protocols import Cost, Planner, WorldModel
from lightning_jepa.types import Modulation, Plan

HEADWAY, FAR = 0.5, 2.0  # steps: a plan that brings less leads nowhere, but for who is nearer to the goal than that
AROUND = 1 / 3  # of a step: so far from where agents were stuck it is the same place


class Place(NamedTuple):
    """A point of the metric space in B episodes, and how far from there is still there."""

    point: Tensor  # [B, M]
    radius: Tensor  # [B]; 0 in episodes that are not meant

    def holds(self, points: Tensor) -> Tensor:
        """Which of points [B, N, M] are there, [B, N]."""
        return (points - self.point[:, None]).norm(dim=-1) < self.radius[:, None]


class Barred(NamedTuple):
    """What was taken for a way; moves are beside it if both their ends are nearer to its own than half its length."""

    start: Place
    end: Place


class GraphCost:
    """The steps still to go from a state: those of a node close to it, and the way to that node.

    Only nodes about as near as the nearest one count, because a long distance in the metric says nothing about walls.

    What turns out to be no way is remembered: each time, the moves beside it cost a setback more. So do places where
    agents are stuck, as no move from there is imagined to lead on though edges were (learning real-time A*, Korf 1990).

    Args:
        graph: of B episodes; its first node is the goal.
        metric: from states [..., D] to [..., M].
        reach: nodes count up to this share of their spacing beyond the nearest one. Where it is as wide as a wall is
            thick, the cost leaks through.
        setback: steps.
        doubt: steps, see `bellman`.
        memory_mb: bound on the distances held at once.
    """

    def __init__(
        self, graph: Graph, metric: nn.Module, reach: float, setback: float, doubt: float, memory_mb: float
    ) -> None:
        self.graph, self.metric, self.memory_mb = graph, metric, memory_mb
        self.setback, self.doubt = setback, doubt
        self.reach = reach * graph.spacing  # metric distance, [B]
        self._edge = graph.steps
        self._barred: list[Barred] = []
        self._shunned: list[Place] = []
        self._here: Tensor | None = None
        self.to_go = self._solved()  # from each node to the goal, [B, N]

    def __call__(self, states: Tensor, actions: Tensor, modulation: Modulation) -> Tensor:
        """[B, S, H, D] -> [B, S, H]; the goal is in the graph already."""
        b, n = self.to_go.shape
        points = self.metric(states).float()
        piece = max(1, int(self.memory_mb * 2**20 // (4 * b * n)))
        steps = torch.cat([self._steps(p) for p in points.flatten(1, 2).split(piece, 1)], 1)
        for place in self._shunned:
            steps = steps + self.setback * place.holds(points.flatten(1, 2))
        steps = steps.view(states.shape[:3])
        first = self._setbacks(points[:, :, 0])
        return torch.cat([steps[..., :1] + first[..., None], steps[..., 1:]], -1)

    def stand(self, s: Tensor) -> None:
        """Where the agents stand, [B, D], so that first states of a plan are the ends of moves from there."""
        self._here = self.metric(s).float()

    def bar(self, s: Tensor, target: Tensor, where: Tensor) -> None:
        """In the episodes `where`, [B], there was no way from s [B, D] to a target [B, D].

        What is left of the way has to be longer than the nodes' spacing: imagined states lie that far off what is seen.
        """
        start, end = self.metric(s).float(), self.metric(target).float()
        length = (start - end).norm(dim=-1)
        where = where & (length >= self.graph.spacing)
        if not where.any():
            return
        radius = length.masked_fill(~where, 0.0) / 2
        barred = Barred(Place(start, radius), Place(end, radius))
        self._barred.append(barred)
        places, successor = self.graph.places, self.graph.successor.flatten(1)
        starts, ends = barred.start.holds(places), barred.end.holds(places).gather(1, successor)
        self._hold_against(starts[:, :, None, None] & ends.view_as(self._edge))

    def stuck(self, s: Tensor, ahead: Tensor, where: Tensor) -> None:
        """Shun s [B, D] in the episodes `where`, [B], unless the states that plans from there lead to are nearer."""
        here, there = (self(states[:, None, None], states, Modulation(s))[:, 0, 0] for states in (s, ahead))
        where = where & (here > FAR) & (here - there < HEADWAY)
        if not where.any():
            return
        place = Place(self.metric(s).float(), (AROUND * self.graph.unit).masked_fill(~where, 0.0))
        self._shunned.append(place)
        self._hold_against(place.holds(self.graph.places)[:, :, None, None])

    def _hold_against(self, edges: Tensor) -> None:
        """Edges [B, N, K, L] cost a setback more."""
        self._edge = self._edge + self.setback * edges
        self.to_go = self._solved()

    def _setbacks(self, points: Tensor) -> Tensor:
        """Of moves to points [B, S, M] from where the agents stand, in steps [B, S]."""
        steps = points.new_zeros(points.shape[:2])
        if self._here is not None:
            here = self._here[:, None]
            for barred in self._barred:
                steps += self.setback * (barred.start.holds(here) & barred.end.holds(points))
        return steps

    def _steps(self, points: Tensor) -> Tensor:
        distance = torch.cdist(points, self.graph.places)
        near = distance <= distance.detach().amin(-1, keepdim=True) + self.reach[:, None, None]
        steps = distance / self.graph.unit[:, None, None] + self.to_go[:, None]
        return steps.masked_fill(~near, torch.inf).amin(-1)

    def _solved(self) -> Tensor:
        graph = self.graph
        straight = (graph.places - graph.places[:, :1]).norm(dim=-1)
        steps = straight / graph.unit[:, None]
        at_goal = steps.masked_fill(straight > graph.spacing[:, None], torch.inf)
        # the graphs of all episodes are one graph with as many parts
        parts = straight.shape[1] * torch.arange(len(straight), device=straight.device)
        successor = (graph.successor + parts[:, None, None, None]).flatten(0, 1)
        edge = self._edge.flatten(0, 1)
        to_go = bellman(successor, edge, at_goal.view(-1, 1), torch.ones_like(edge), self.doubt).to_go.view_as(at_goal)
        # Where no way to the goal was imagined, the straight one is the best guess, and worse than any that was.
        worst = to_go.masked_fill(to_go.isinf(), 0).amax(1, keepdim=True)
        return torch.where(to_go.isinf(), worst + steps, to_go)


class GraphSearch:
    """Mode-2 by dynamic programming (paper section 3.1.2) over states that the world model imagines.

    Once for each goal an `Explorer` imagines how states are connected, and relaxation gives the steps from every node
    to the goal. From then on a planner of short horizon descends this cost-to-go, which replaces the cost it is given.

    The graph is built anew when `modulation.goal` is another tensor than in the call before (one per episode).

    In a hierarchy, `scouts` may imagine with the level below which states there are: its steps are short, its states
    drift less, and a state of this level that no walk of this level had to reach is one that encoded states lie near.

    Args:
        planner: searches under the graph's cost; a short horizon is enough.
        explorer: makes the graph; or what makes one of a `metric`.
        metric: from states [..., D] to a space [..., M] in which neighbours are told by distance; states if None.
        reach: nodes count for a state up to this share of the nodes' spacing beyond the nearest one.
        setback: steps that edges beside one cost more, each time that it is found to be no way, see `out_of_reach`.
        doubt: steps that a way costs more where one move alone leads on, unconfirmed by a second; None: it is none.
        memory_mb: bound on the distances from nodes held at once while planning.
        scouts: walk on the level below, in the place of the explorer's own walks; None: these.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        planner: Planner,
        explorer: Callable[..., Explorer],
        metric: nn.Module | None,
        reach: float = 0.3,
        setback: float = 10.0,
        doubt: float | None = None,
        memory_mb: float = 256.0,
        scouts: Scouts | None = None,
    ) -> None:
        check_positive(reach=reach, setback=setback, memory_mb=memory_mb)
        self.planner, self.explorer = planner, explorer(metric=metric)
        self.reach, self.setback, self.memory_mb, self.scouts = reach, setback, memory_mb, scouts
        self.doubt = torch.inf if doubt is None else doubt
        self._found: Tensor | None = None
        self._ahead: Tensor | None = None
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
            self._goal, spent = modulation.goal, self.evaluations
        self._cost.stand(s)
        plan = self.planner.plan(s, world_model, self._cost, modulation, start, generator)
        self._ahead = plan.states[:, 0]
        return Plan(plan.actions, plan.states, plan.cost, plan.evaluations + spent)

    @torch.no_grad()
    def out_of_reach(self, s: Tensor, target: Tensor, where: Tensor) -> None:
        """What was planned as a way from s [B, D] to a target [B, D] was none in the episodes `where`, [B]."""
        if self._cost is not None:
            self._cost.bar(s, target, where)

    @torch.no_grad()
    def followed(self, s: Tensor, where: Tensor) -> None:
        """What was planned last is what agents at s [B, D] follow in the episodes `where`, [B], and may not lead on."""
        if self._cost is not None and self._ahead is not None:
            self._cost.stuck(s, self._ahead, where)

    @property
    def evaluations(self) -> int:
        """Model steps spent on the graph of one episode, those of the level below too."""
        return self.explorer.evaluations if self.scouts is None else self.scouts.evaluations + self.explorer.moves

    @torch.no_grad()
    def scout(
        self,
        s: Tensor,
        goal: Tensor,
        below: WorldModel,
        lift: Callable[[Tensor], Tensor],
        generator: Generator | None = None,
    ) -> None:
        """See `protocols.Scouting`; without scouts the graph is made of this level's walks."""
        if self.scouts is not None:

            def placed(states: Tensor) -> Tensor:
                points: Tensor = self.explorer.metric(lift(states)).float()
                return points

            self._found = lift(self.scouts.spread(torch.stack([goal, s], 1), below, placed, generator))

    @torch.no_grad()
    def build(self, s: Tensor, world_model: WorldModel, goal: Tensor, generator: Generator | None = None) -> GraphCost:
        """The graph's cost for episodes that stand at s [B, D] and have goals [B, D].

        Raises:
            ValueError: if it has scouts and none were sent out.
        """
        if self.scouts is not None and self._found is None:
            raise ValueError(
                "this planner's scouts walk on the level below: give it to a level of a hierarchical planner, or set "
                "its scouts to null"
            )
        graph = self.explorer.explore(s, goal, world_model, generator, found=self._found)
        self._found = None
        return GraphCost(graph, self.explorer.metric, self.reach, self.setback, self.doubt, self.memory_mb)
