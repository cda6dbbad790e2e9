"""Dynamic programming on the learned model: a graph of imagined states, and Mode-2 under its cost-to-go.

Legend: B episodes, S candidates, H horizon, A action, D state, M numbers of the metric space, L steps imagined,
P pool of imagined states, N nodes, K edges of a node.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor, nn

from lightning_jepa.actor.planners.shooting import (
    check_colour,
    check_counts,
    check_positive,
    coloured_noise,
    pick,
)
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

    Once for each goal: random walks are imagined from where the agent stands and from the goal, then again from states
    among those found that lie far apart, for some rounds, so that they spread over all that can be reached. States far
    apart become nodes; from each node straight moves are imagined, and each leads to the nodes next to where it passes.
    Relaxation gives the steps from every node to the goal. Every edge is thus one that the world model believes in; the
    metric is trusted over the distance between neighbouring nodes alone. From then on a planner of short horizon
    descends the cost-to-go, which replaces the cost it is given.

    The graph is built anew when `modulation.goal` is another tensor than in the call before (one per episode).

    Args:
        planner: searches under the graph's cost; a short horizon is enough.
        metric: from states [..., D] to a space [..., M] in which neighbours are told by distance; states if None.
        rounds: rounds of walks.
        origins: states from which walks start in each round.
        walks: random walks from each of them.
        walk_steps: steps in each.
        nodes: nodes of the graph, the goal and the start included.
        branches: straight moves tried from each node.
        branch_steps: steps in each; so many should lead further than to the next node.
        action_size: numbers in an action.
        action_bound: largest norm of an action; walks and moves are at full speed.
        reach: nodes count for a state up to this share of the nodes' spacing beyond the nearest one.
        colour: temporal correlation of the walks, see `coloured_noise`.
        memory_mb: bound on the distances from nodes held at once while planning.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        planner: Planner,
        metric: nn.Module | None,
        rounds: int,
        origins: int,
        walks: int,
        walk_steps: int,
        nodes: int,
        branches: int,
        branch_steps: int,
        action_size: int,
        action_bound: float,
        reach: float = 0.3,
        colour: float = 2.0,
        memory_mb: float = 256.0,
    ) -> None:
        check_counts(rounds=rounds, origins=origins, walks=walks, walk_steps=walk_steps, nodes=nodes)
        check_counts(branches=branches, branch_steps=branch_steps, action_size=action_size)
        check_positive(action_bound=action_bound, reach=reach, memory_mb=memory_mb)
        check_colour(colour)
        if branches < 2:
            raise ValueError(f"planner.branches={branches}: expected 2 or more, a way needs two moves that lead there")
        found = origins * walks * walk_steps
        if not max(2, origins) <= nodes <= found:
            raise ValueError(
                f"planner.nodes={nodes}: expected at least 2 (start and goal), planner.origins={origins} or more, "
                f"and at most origins * walks * walk_steps = {found}, the states that a round imagines"
            )
        self.planner, self.metric = planner, metric if metric is not None else nn.Identity()
        self.rounds, self.origins, self.walks, self.walk_steps = rounds, origins, walks, walk_steps
        self.nodes, self.branches, self.branch_steps = nodes, branches, branch_steps
        self.action_size, self.action_bound = action_size, action_bound
        self.reach, self.colour, self.memory_mb = reach, colour, memory_mb
        self._goal: Tensor | None = None
        self._cost: GraphCost | None = None

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
            self._goal, spent = modulation.goal, self.build_evaluations
        plan = self.planner.plan(s, world_model, self._cost, modulation, start, generator)
        return Plan(plan.actions, plan.states, plan.cost, plan.evaluations + spent)

    @property
    def horizon(self) -> int:
        """Actions in a plan."""
        return self.planner.horizon

    @property
    def build_evaluations(self) -> int:
        """Model steps spent on the graph of one episode."""
        walked = self.rounds * self.origins * self.walks * self.walk_steps
        return walked + self.nodes * self.branches * self.branch_steps

    @torch.no_grad()
    def build(self, s: Tensor, world_model: WorldModel, goal: Tensor, generator: Generator | None = None) -> GraphCost:
        """The graph's cost for episodes that stand at s [B, D] and have goals [B, D]."""
        pool = self._explore(s, world_model, goal, generator)
        chosen, spacing = farthest(self.metric(pool).float(), self.nodes)
        nodes = pick(pool, chosen)
        moves = self._full_speed(self.nodes * self.branches, 1, generator, s).expand(-1, self.branch_steps, -1)
        moves = moves.unflatten(0, (self.nodes, self.branches))
        places = self.metric(nodes).float()  # distances need full precision
        found = []
        for node, place, move in zip(nodes.unbind(1), places.unbind(1), moves, strict=True):
            passed = self.metric(self._imagine(world_model, node, move)).float().flatten(1, 2)
            moved = (passed - place[:, None]).norm(dim=-1)
            found.append((*torch.cdist(passed, places).min(-1), moved))
        off, successor, moved = (torch.cat(part, 1) for part in zip(*found, strict=True))
        steps = torch.arange(1, self.branch_steps + 1, device=s.device).repeat(self.nodes * self.branches)
        unit = (moved / steps).median(1).values.clamp_min(1e-9)
        straight = (places - places[:, :1]).norm(dim=-1)
        at_goal = (straight / unit[:, None]).masked_fill(straight > spacing[:, None], torch.inf)
        shape = (len(s), self.nodes, self.branches, self.branch_steps)
        edge = (steps + off / unit[:, None]).view(shape)
        to_go = steps_to_go(successor.view(shape), edge, at_goal)
        # Where no way to the goal was imagined, the straight one is the best guess, and worse than any that was.
        worst = to_go.masked_fill(to_go.isinf(), 0).amax(1, keepdim=True)
        to_go = torch.where(to_go.isinf(), worst + straight / unit[:, None], to_go)
        return GraphCost(places, to_go, unit, self.reach * spacing, self.metric, self.memory_mb)

    def _explore(self, s: Tensor, world_model: WorldModel, goal: Tensor, generator: Generator | None) -> Tensor:
        """States [B, P, D] that can be reached from s or the goal, which are the first two."""
        pool = torch.stack([goal, s], 1)
        kept = math.ceil(self.nodes / self.origins)  # of the states found from one origin; all would need much memory
        for _ in range(self.rounds):
            if pool.shape[1] < self.origins:
                origins = pool[:, torch.arange(self.origins, device=pool.device) % pool.shape[1]]
            else:
                origins = pick(pool, farthest(self.metric(pool).float(), self.origins)[0])
            walks = self._full_speed(self.origins * self.walks, self.walk_steps, generator, s)
            found = [pool]
            for origin, actions in zip(origins.unbind(1), walks.split(self.walks), strict=True):
                some = torch.randperm(self.walks * self.walk_steps, generator=generator)[:kept].to(s.device)
                found.append(self._imagine(world_model, origin, actions).flatten(1, 2)[:, some])
            pool = torch.cat(found, 1)
        return pool

    def _imagine(self, world_model: WorldModel, s: Tensor, actions: Tensor) -> Tensor:
        """From s [B, D] by the same actions [S, L, A] in every episode: [B, S, L, D]."""
        with torch.inference_mode():
            return world_model.rollout(s, actions.expand(len(s), -1, -1, -1))

    def _full_speed(self, sequences: int, steps: int, generator: Generator | None, like: Tensor) -> Tensor:
        """Random action sequences [sequences, steps, A] whose actions all have the largest norm."""
        noise = coloured_noise(sequences, steps, self.action_size, self.colour, generator, like)
        return noise / noise.norm(dim=-1, keepdim=True).clamp_min(1e-9) * self.action_bound


def farthest(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Greedily choose points that are far apart, the first one first.

    Args:
        points: [B, P, M].
        count: how many.

    Returns:
        their indices [B, N], and the largest distance [B] of any point from those chosen.
    """
    rows = torch.arange(len(points), device=points.device)
    chosen = torch.zeros(len(points), count, dtype=torch.long, device=points.device)
    nearest = (points - points[:, :1]).norm(dim=-1)
    for i in range(1, count):
        chosen[:, i] = nearest.argmax(1)
        nearest = torch.minimum(nearest, (points - points[rows, chosen[:, i]][:, None]).norm(dim=-1))
    return chosen, nearest.amax(1)


def steps_to_go(successor: Tensor, edge: Tensor, known: Tensor) -> Tensor:
    """Bellman's equation by relaxation, V(i) = min(known(i), second least over k of min_l edge(i, k, l) + V(j)).

    The second least, so that a way needs two moves that lead there: a model that leaks through a wall in one push of a
    thousand has such a push somewhere among thousands of edges, and the least would seek out exactly that one.

    Args:
        successor: j, the node next to each of the L places that each of the K moves from a node passes, [B, N, K, L].
        edge: steps to there, [B, N, K, L].
        known: V of nodes at the goal, infinite for the others, [B, N].

    Returns:
        V [B, N], infinite where no two moves lead on to the goal.
    """
    to_go, flat = known, successor.flatten(1)
    for _ in range(known.shape[1]):
        moves = (edge + to_go.gather(1, flat).view_as(edge)).amin(-1)
        shorter = torch.minimum(to_go, moves.kthvalue(2).values)
        if torch.equal(shorter, to_go):
            break
        to_go = shorter
    return to_go
