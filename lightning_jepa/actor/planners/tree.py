"""Tree search in latent space, with chance nodes over z and pruning by bounds (paper sections 3.1.2 and 4.7).

Legend: B episodes, K actions, M outcomes, H depth, D state, A action, N actions tried at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from lightning_jepa.actor.planners.shooting import check_counts
from lightning_jepa.protocols import BranchingModel, Cost
from lightning_jepa.types import Modulation, Plan

# states [N, D], goals [N, D], steps left, discount -> numbers [N] below which the cost to come can't fall
LowerBound = Callable[[Tensor, Tensor, int, float], Tensor]


class Branch:
    """An action that was tried: how likely each outcome is, what it costs, and what may come of it."""

    def __init__(self, chances: list[float], costs: list[float], children: list[Node], discount: float) -> None:
        self.chances, self.costs, self.children, self.discount = chances, costs, children, discount

    @property
    def low(self) -> float:
        """The expected cost is not below this."""
        return self._expected([child.low for child in self.children])

    @property
    def high(self) -> float:
        """Nor above this."""
        return self._expected([child.high for child in self.children])

    def widest(self) -> Node:
        """The outcome that leaves most of the expected cost open."""
        gaps = [p * (child.high - child.low) for p, child in zip(self.chances, self.children, strict=True)]
        return self.children[max(range(len(gaps)), key=gaps.__getitem__)]

    def _expected(self, ahead: list[float]) -> float:
        parts = zip(self.chances, self.costs, ahead, strict=True)
        return sum(p * (cost + self.discount * to_come) for p, cost, to_come in parts)


class Node:
    """A state that may come about: `low` <= cost to come, if the best is done <= `high`."""

    def __init__(self, state: Tensor, depth: int, floor: float, high: float) -> None:
        self.state, self.depth, self.floor = state, depth, floor
        self.low, self.high = floor, high
        self.visits = 0
        self.branches: dict[int, Branch] = {}  # by action, those that were tried

    def update(self, actions: int) -> None:
        """Bounds from those of the actions; an action that was not tried costs at least the floor."""
        lows = [branch.low for branch in self.branches.values()]
        self.low = min(lows) if len(lows) == actions else self.floor
        self.high = min([self.high, *(branch.high for branch in self.branches.values())])
        if self.high < self.floor - 1e-4 * max(1.0, abs(self.floor)):
            raise ValueError(
                f"planner.bound said that {self.floor:g} at least is to come where {self.high:g} may be enough: give "
                "one of the cost that is planned with, its metric and weights included"
            )


class TreeSearch:
    """Mode-2 over a few actions, when each may lead to several states.

    The tree grows by one action at a time, with all its outcomes. The bounds of an action are means over its outcomes,
    those of a node the least over its actions. What has a lower bound above the upper bound of another action can't be
    best and is left alone, whether it was tried or not; where the bounds are true the best action never is.

    Every action of a node is tried once before any is visited twice, if the budget is at least the number of actions;
    else nodes widen with their visits, to ceil(sqrt(visits)) actions. Then the search follows the action of the least
    lower bound, and of its outcomes the one that leaves most open.

    Args:
        actions: K actions of A numbers.
        depth: H.
        simulations: actions tried at most, each with all its outcomes.
        most: what a single step can cost at most.
        discount: of cost.
        bound: of the cost to come from below; none: intrinsic costs are not below zero.

    Raises:
        ValueError: if a number is out of its range; where it plans, if a cost is.
    """

    def __init__(
        self,
        actions: Sequence[Sequence[float]],
        depth: int,
        simulations: int,
        most: float,
        discount: float = 1.0,
        bound: LowerBound | None = None,
    ) -> None:
        check_counts(depth=depth, simulations=simulations)
        if len(actions) < 2 or len({len(action) for action in actions}) != 1:
            raise ValueError(f"planner.actions={list(actions)}: give two or more actions of equally many numbers")
        if not 0 < discount <= 1 or not 0 < most < math.inf:
            raise ValueError(
                f"planner.discount={discount}, planner.most={most}: give a discount above 0 and at most 1, and the "
                "most that a step can cost, above 0"
            )
        self.actions = torch.tensor([list(action) for action in actions], dtype=torch.float32)
        self.depth, self.simulations, self.most, self.discount, self.bound = depth, simulations, most, discount, bound
        self.roots: list[Node] = []  # of the last plan

    @property
    def horizon(self) -> int:
        """Actions in a plan."""
        return self.depth

    @property
    def action_bound(self) -> float:
        """Largest norm of an action."""
        return float(self.actions.norm(dim=-1).max())

    @torch.no_grad()
    def plan(
        self,
        s: Tensor,
        world_model: BranchingModel,
        cost: Cost,
        modulation: Modulation,
        start: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Plan:
        """See `protocols.Planner`. The plan follows the likeliest outcomes; where nothing was tried it is zero.

        A plan's cost is the lower bound of the action that it begins with. Only that action takes into account what
        else may happen: search again before the next one.
        """
        floors = self._floors(s, modulation.goal, self.depth)
        self.roots = [Node(one, 0, floor, self._most(self.depth)) for one, floor in zip(s, floors, strict=True)]
        evaluations = 0
        for _ in range(self.simulations):
            ways = {row: way for row, root in enumerate(self.roots) if (way := self._way(root))}
            if not ways:
                break
            evaluations += self._try(ways, world_model, cost, modulation)
        return self._found(s, evaluations)

    def _way(self, root: Node) -> list[tuple[Node, int]]:
        """Nodes and actions down to one that was not tried yet; empty if nothing open could change what is best."""
        node, way = root, list[tuple[Node, int]]()
        while True:
            best = min((branch.high for branch in node.branches.values()), default=math.inf)
            untried = [k for k in range(len(self.actions)) if k not in node.branches]
            width = len(self.actions)
            if width > self.simulations:
                width = math.ceil(math.sqrt(node.visits + 1))
            hopeful = {k: one for k, one in node.branches.items() if one.low < one.high and one.low <= best}
            if untried and node.floor < best and (len(node.branches) < width or not hopeful):
                return [*way, (node, untried[0])]
            if not hopeful:
                return []
            k = min(hopeful, key=lambda k: hopeful[k].low)
            way.append((node, k))
            node = hopeful[k].widest()

    def _try(
        self, ways: dict[int, list[tuple[Node, int]]], model: BranchingModel, cost: Cost, modulation: Modulation
    ) -> int:
        """Try the last action of each way; returns the model steps for an episode."""
        rows, ends = list(ways), [way[-1] for way in ways.values()]
        s = torch.stack([node.state for node, _ in ends])
        actions = self.actions.to(s)[[k for _, k in ends]]
        states, chances = model.outcomes(s, actions)  # [N, M, D], [N, M]
        given = modulation.of(rows)
        # A sequence's cost has the critic's at its end: twice the same state, and the first of both is without.
        twice = states[:, :, None].expand(-1, -1, 2, -1)
        led = actions[:, None, None].expand(-1, states.shape[1], 2, -1)
        passing, last = cost(twice, led, given)[..., 0], cost(twice[:, :, :1], led[:, :, :1], given)[..., 0]
        for place, way in enumerate(ways.values()):
            node, k = way[-1]
            left = self.depth - node.depth - 1
            spent = passing[place] if left else last[place]
            self._check(spent)
            floors = self._floors(states[place], given.goal[place].expand(len(spent), -1), left)
            children = [
                Node(state, node.depth + 1, floor, self._most(left))
                for state, floor in zip(states[place], floors, strict=True)
            ]
            node.branches[k] = Branch(chances[place].tolist(), spent.tolist(), children, self.discount)
            for above, _ in reversed(way):
                above.visits += 1
                above.update(len(self.actions))
        return states.shape[1]

    def _floors(self, states: Tensor, goals: Tensor, left: int) -> list[float]:
        """Of what is still to come, from states [N, D]."""
        if not left or self.bound is None:
            return [0.0] * len(states)
        floors: list[float] = self.bound(states, goals, left, self.discount).tolist()
        return floors

    def _check(self, spent: Tensor) -> None:
        """Bounds are true if costs are what they were said to be."""
        if not torch.isfinite(spent).all():
            raise ValueError(
                "the planning cost is not finite: predicted states or the cost overflow or hold NaN; check that the "
                "checkpoint was trained (its loss is finite)"
            )
        if spent.min() < 0 or spent.max() > self.most:
            raise ValueError(
                f"a step costs {float(spent.max() if spent.max() > self.most else spent.min()):g}, but the best action "
                f"is found by bounds that hold between 0 and planner.most={self.most:g}: raise planner.most, or give a "
                "cost that is not negative"
            )

    def _most(self, left: int) -> float:
        return self.most * sum(self.discount**t for t in range(left))

    def _found(self, s: Tensor, evaluations: int) -> Plan:
        actions = s.new_zeros(len(s), self.depth, self.actions.shape[1])
        states = s[:, None].repeat(1, self.depth, 1)
        cost = s.new_zeros(len(s))
        for row, root in enumerate(self.roots):
            node = root
            while node.branches:
                # with equal lower bounds, the one that is known to be good
                k = min(node.branches, key=lambda k: (node.branches[k].low + node.branches[k].high, k))
                branch = node.branches[k]
                if node is root:
                    cost[row] = branch.low
                actions[row, node.depth] = self.actions[k]
                node = branch.children[max(range(len(branch.chances)), key=branch.chances.__getitem__)]
                states[row, node.depth - 1 :] = node.state
        return Plan(actions, states, cost, evaluations)
