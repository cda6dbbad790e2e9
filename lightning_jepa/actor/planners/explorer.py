"""A graph of states that the world model imagines, and dynamic programming on it (paper section 3.1.2).

Legend: B episodes, P pool of imagined states, N nodes, G goals, K moves from each node, L steps of a move, A action,
D state, M numbers of the metric space, E energies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from lightning_jepa.actor.planners.scouts import Scouts, farthest, full_speed, imagined
from lightning_jepa.actor.planners.shooting import check_counts, pick
from lightning_jepa.protocols import WorldModel

Energies = Callable[[Tensor, Tensor], Tensor]  # states [B, K, L, D], actions [B, K, L, A] -> [B, K, L, E]


class Graph(NamedTuple):
    """What was imagined of B episodes. The first node is the goal."""

    nodes: Tensor  # states [B, N, D]
    places: Tensor  # the same in the metric space, [B, N, M]
    successor: Tensor  # int64 [B, N, K, L]: the node next to each place that a move passes
    off: Tensor  # [B, N, K, L]: how far that node is from there, in steps
    energies: Tensor | None  # [B, N, K, L, E]: of the states that each move passes
    moves: Tensor  # [B, N, K, A]: the action that each move repeats
    unit: Tensor  # [B]: metric length of one step
    spacing: Tensor  # [B]: largest metric distance of an imagined state from the nodes

    @property
    def steps(self) -> Tensor:
        """Steps from a node to each successor, the way off the move included, [B, N, K, L]."""
        return self.off + torch.arange(1, self.off.shape[-1] + 1, device=self.off.device)


class Explorer:
    """Imagines how states are connected.

    Random walks are imagined from where the agent stands and from a goal, then again from states among those found that
    lie far apart, for some rounds, so that they spread over all that can be reached. States far apart become nodes;
    from each node straight moves are imagined, and each leads to the nodes next to where it passes. Every edge is thus
    one that the world model believes in; the metric is trusted over the distance between neighbouring nodes alone.

    Args:
        metric: from states [..., D] to a space [..., M] in which neighbours are told by distance; states if None.
        rounds: rounds of walks.
        origins: states from which walks start in each round.
        walks: random walks from each of them.
        walk_steps: steps in each.
        nodes: nodes of the graph, the goal included.
        branches: straight moves tried from each node.
        branch_steps: steps in each; so many should lead further than to the next node.
        action_size: numbers in an action.
        action_bound: largest norm of an action; walks and moves are at full speed.
        colour: temporal correlation of the walks, see `coloured_noise`.
        slowest: share of the bound that a move has at least; 1: all are at full speed. Where one move leads past many
            nodes, as macro-actions do, moves of one length hardly ever end next to a node twice, and no way is found.
        typical: quantile of the lengths of moves that counts as one step; above the median where walls stop most.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
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
        colour: float = 2.0,
        slowest: float = 1.0,
        typical: float = 0.5,
    ) -> None:
        check_counts(origins=origins, nodes=nodes, branches=branches, branch_steps=branch_steps)
        kept = math.ceil(nodes / origins)
        self.walks = Scouts(rounds, origins, walks, walk_steps, kept, action_size, action_bound, colour)
        if not 0 <= slowest <= 1:
            raise ValueError(f"planner.slowest={slowest}: give a share between 0 and 1")
        if not 0 < typical < 1:
            raise ValueError(f"planner.typical={typical}: give a quantile between 0 and 1")
        if branches < 2:
            raise ValueError(f"planner.branches={branches}: expected 2 or more, a way needs two moves that lead there")
        found = origins * walks * walk_steps
        if not max(2, origins) <= nodes <= found:
            raise ValueError(
                f"planner.nodes={nodes}: expected at least 2 (start and goal), planner.origins={origins} or more, "
                f"and at most origins * walks * walk_steps = {found}, the states that a round imagines"
            )
        self.metric = metric if metric is not None else nn.Identity()
        self.nodes, self.branches, self.branch_steps = nodes, branches, branch_steps
        self.action_size, self.action_bound = action_size, action_bound
        self.colour, self.slowest, self.typical = colour, slowest, typical

    @property
    def evaluations(self) -> int:
        """Model steps spent on the graph of one episode."""
        return self.walks.evaluations + self.moves

    @property
    def moves(self) -> int:
        """Those spent on moves alone, where others found the states."""
        return self.nodes * self.branches * self.branch_steps

    @property
    def settings(self) -> list[float]:
        """All its numbers: explorers with the same find the same."""
        own = self.walks
        walks = [own.rounds, own.origins, own.walks, own.walk_steps, self.colour]
        moves = [self.branches, self.branch_steps, self.action_size, self.action_bound, self.slowest, self.typical]
        return [*walks, self.nodes, *moves]

    @torch.no_grad()
    def explore(
        self,
        s: Tensor,
        goal: Tensor,
        world_model: WorldModel,
        generator: Generator | None = None,
        energies: Energies | None = None,
        found: Tensor | None = None,
    ) -> Graph:
        """The graph of episodes that stand at s [B, D] and have goals [B, D].

        Args:
            s: where the agents stand.
            goal: where they want to be.
            world_model: imagines walks and moves.
            generator: of both.
            energies: what is to be kept of all moves.
            found: states that can be reached, [B, P, D], goal and start first, from which nodes are chosen in the place
                of walks of its own.
        """
        if found is None:
            found = self.walks.spread(torch.stack([goal, s], 1), world_model, self._placed, generator)
        pool = found
        chosen, spacing = farthest(self._placed(pool), self.nodes)
        nodes = pick(pool, chosen)
        moves = self._directions(generator, s)[:, :, None].expand(-1, -1, self.branch_steps, -1)
        places = self._placed(nodes)
        edges, passing = [], []
        for node, place, move in zip(nodes.unbind(1), places.unbind(1), moves, strict=True):
            states = imagined(world_model, node, move)
            passed = self.metric(states).float().flatten(1, 2)
            moved = (passed - place[:, None]).norm(dim=-1)
            edges.append((*torch.cdist(passed, places).min(-1), moved))
            if energies is not None:
                passing.append(energies(states, move.expand(len(node), -1, -1, -1)))
        off, successor, moved = (torch.cat(part, 1) for part in zip(*edges, strict=True))
        steps = torch.arange(1, self.branch_steps + 1, device=s.device).repeat(self.nodes * self.branches)
        unit = (moved / steps).quantile(self.typical, dim=1, interpolation="lower").clamp_min(1e-9)  # .5: the median
        shape = (len(s), self.nodes, self.branches, self.branch_steps)
        return Graph(
            nodes,
            places,
            successor.view(shape),
            (off / unit[:, None]).view(shape),
            torch.stack(passing, 1) if passing else None,
            moves[:, :, 0].expand(len(s), -1, -1, -1),
            unit,
            spacing,
        )

    def _placed(self, states: Tensor) -> Tensor:
        """Where states [B, P, D] are, [B, P, M]; distances need full precision."""
        places: Tensor = self.metric(states).float()
        return places

    def _directions(self, generator: Generator | None, like: Tensor) -> Tensor:
        """Actions [N, K, A] from each node; of eight times as many, those that lead furthest apart, and their speed."""
        count = self.nodes * 8 * self.branches
        drawn = full_speed(count, 1, self.action_size, self.action_bound, self.colour, generator).to(like)
        drawn = drawn.view(self.nodes, 8 * self.branches, -1)
        moves = pick(drawn, farthest(drawn, self.branches)[0])
        if self.slowest == 1:
            return moves
        share = torch.rand(*moves.shape[:-1], 1, generator=generator).to(moves)
        return moves * (self.slowest + (1 - self.slowest) * share)


class Solution(NamedTuple):
    """Of Bellman's equation."""

    to_go: Tensor  # V [N, G], infinite where no two moves lead on to the goal
    moves: Tensor  # uint8 [N, G, 2]: the best and the second best move from each node


def bellman(successor: Tensor, edge: Tensor, known: Tensor, factor: Tensor, doubt: float = torch.inf) -> Solution:
    """Bellman's equation by relaxation, V(i) = min(known(i), second least over k of min_l edge(i, k, l) + factor V(j)).

    The second least, so that a way needs two moves that lead there: a model that leaks through a wall in one push of a
    thousand has such a push somewhere among thousands of edges, and the least would seek out exactly that one.

    Args:
        successor: j, the node next to each of the L places that each of the K moves from a node passes, [N, K, L].
        edge: what it costs to get there, [N, K, L].
        known: what V is at most, [N, G]: of nodes that are at the goal, or where the agent could stay; else infinite.
        factor: what the cost from there on counts, [N, K, L]: the discount to the power of the steps.
        doubt: what it costs more to trust the least alone; infinite: it never is.
    """

    def by(to_go: Tensor) -> Iterator[Tensor]:
        """For each move, what is to come if it is made: K times [N, G]. Rows of V are read whole, which is fast."""
        for j, cost, counts in zip(successor.unbind(1), edge.unbind(1), factor.unbind(1), strict=True):
            ahead = to_go.index_select(0, j.flatten()).view(*j.shape, -1)
            yield torch.addcmul(cost[..., None], counts[..., None], ahead).amin(1)

    to_go = known
    for _ in range(known.shape[0]):
        moves = by(to_go)
        least, second = next(moves), torch.full_like(known, torch.inf)
        for move in moves:
            second = torch.minimum(second, torch.maximum(least, move))
            least = torch.minimum(least, move)
        shorter = torch.minimum(to_go, torch.minimum(second, least + doubt))
        if torch.equal(shorter, to_go):
            break
        to_go = shorter
    return Solution(to_go, torch.stack(list(by(to_go)), -1).topk(2, -1, largest=False).indices.to(torch.uint8))
