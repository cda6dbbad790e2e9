"""Mode-2 in imagination, for whole layouts at once: graphs of imagined states, solved for every goal among them.

Legend: B drawn, F graphs, G weights u of each, N nodes, K moves from each (and terms of u), D state, A action.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from lightning_jepa.actor.planners.explorer import Explorer, Graph, bellman
from lightning_jepa.cost.intrinsic import IntrinsicCost
from lightning_jepa.protocols import WorldModel
from lightning_jepa.types import Modulation


class Weighing(Protocol):
    """Draws weights u of the intrinsic cost."""

    def __call__(self, count: int, generator: Generator) -> Tensor:
        """[count, K]."""
        ...


class Lesson(NamedTuple):
    """States with goals and weights, and what Mode-2 found there."""

    states: Tensor  # [B, D]
    goals: Tensor  # [B, D]
    u: Tensor  # [B, K]
    cost: Tensor  # [B]: still to come
    action: Tensor  # [B, A]


class Preparation(NamedTuple):
    """What a stage makes beside its first steps."""

    what: str
    done: int
    total: int


class _Solved(NamedTuple):
    """Graphs, solved; on a leading axis of F."""

    nodes: Tensor  # [N, D]
    u: Tensor  # [G, K]
    to_go: Tensor  # [G, nodes N, goals N]; infinite where no imagined way is better than to stay
    best: Tensor  # uint8 [G, nodes N, goals N, 2]: the best and the second best move
    moves: Tensor  # [N, K + 1, A]; the last is to stay


class ImaginedPlans:
    """Graphs around remembered states, and for each pair of their nodes what it costs to get there, and how to begin.

    A graph is imagined as `GraphSearch` does around two states of one episode, and Bellman's equation solved on it for
    every node as goal. Each step that is not at the goal costs the goal's weight, as its energy saturates; what the
    other terms of the intrinsic cost say is read off the states that moves pass.

    Args:
        explorer: what makes an `Explorer` of a `metric`.
        graphs: F.
        weights_each: G.
        discount: of cost.
        cache: a file that keeps the graphs for the next stage, which would make the same; None for none.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        explorer: Callable[..., Explorer],
        graphs: int,
        weights_each: int = 1,
        discount: float = 0.97,
        cache: str | None = None,
    ) -> None:
        if min(graphs, weights_each) < 1 or not 0 < discount < 1:
            raise ValueError(
                f"graphs={graphs}, weights_each={weights_each}, discount={discount}: give counts of at least 1 and a "
                "discount between 0 and 1"
            )
        self.make_explorer, self.graphs = explorer, graphs
        self.weights_each, self.discount = weights_each, discount
        self.cache = None if cache is None else Path(cache)
        self.made = 0
        self._held: _Solved | None = None

    @property
    def missing(self) -> int:
        """Graphs still to be made."""
        return self.graphs - self.made

    @property
    def preparation(self) -> Preparation | None:
        """How many graphs there are, until there are all."""
        return Preparation("graph", self.made, self.graphs) if self.missing else None

    @torch.no_grad()
    def add(
        self,
        starts: Tensor,
        others: Tensor,
        world_model: WorldModel,
        metric: torch.nn.Module,
        intrinsic: IntrinsicCost,
        weighing: Weighing,
        generator: Generator,
    ) -> None:
        """Make graphs around pairs of states [B, D], as many as are missing at most."""
        explorer = self.make_explorer(metric=metric)
        of = [self.graphs, self.weights_each, self.discount, intrinsic.fingerprint, *explorer.settings]
        if self.made == 0 and self._load(of):
            return
        starts, others = starts[: self.missing], others[: self.missing]

        def energies(states: Tensor, actions: Tensor) -> Tensor:
            return intrinsic(states, actions, Modulation(states[:, 0, 0]))

        with torch.autocast(starts.device.type, torch.bfloat16):
            graph = explorer.explore(starts, others, world_model, generator, energies)
        for row in range(len(starts)):
            one = Graph(*(part[row] for part in graph if part is not None))
            solved = self._solved(one, intrinsic, weighing(self.weights_each, generator).to(starts))
            if self._held is None:
                self._held = _Solved(*(part.new_empty(self.graphs, *part.shape) for part in solved))
            for held, part in zip(self._held, solved, strict=True):
                held[self.made] = part
            self.made += 1
        if not self.missing:
            self._save(of)

    def _load(self, of: list[Any]) -> bool:
        """Take the graphs from the cache, if they are those of this intrinsic cost, and so of this world model."""
        if self.cache is None or not self.cache.is_file():
            return False
        found = torch.load(self.cache, weights_only=True)
        if found.pop("of") != of:
            return False
        self._held, self.made = _Solved(**found), self.graphs
        return True

    def _save(self, of: list[Any]) -> None:
        if self.cache is None or self._held is None:
            return
        beside = self.cache.with_name(f"{self.cache.name}.{os.getpid()}")
        torch.save({"of": of, **self._held._asdict()}, beside)
        os.replace(beside, self.cache)

    def draw(self, count: int, generator: Generator) -> Lesson:
        """`count` random pairs of nodes; fewer by those that no way connects that would be worth it.

        Raises:
            ValueError: if nothing is connected.
        """
        assert self._held is not None, "no graph was made yet"
        nodes, u, to_go, best, moves = self._held
        sizes = (self.made, *to_go.shape[1:])
        drawn = [torch.randint(size, (count,), generator=generator).to(nodes.device) for size in sizes]
        known = to_go[drawn[0], drawn[1], drawn[2], drawn[3]].isfinite()
        if not known.any():
            raise ValueError(
                f"none of {count} pairs of imagined nodes is connected: moves end as far from other nodes as they "
                "began. Raise nodes or branch_steps of critic.plans.explorer, or train the metric longer"
            )
        field, weights, node, goal = (index[known] for index in drawn)
        # The best of a few directions is only near the way; with half of the second best added it errs less.
        first, second = (moves[field, node, best[field, weights, node, goal, rank].long()] for rank in (0, 1))
        action = first + 0.5 * second
        action = action * (first.norm(dim=-1, keepdim=True) / action.norm(dim=-1, keepdim=True).clamp_min(1e-9))
        return Lesson(
            nodes[field, node].float(),
            nodes[field, goal].float(),
            u[field, weights],
            to_go[field, weights, node, goal],
            action,
        )

    def _solved(self, graph: Graph, intrinsic: IntrinsicCost, u: Tensor) -> _Solved:
        assert graph.energies is not None
        nodes, gamma, count = graph.nodes, self.discount, len(graph.nodes)
        goal = intrinsic.goal
        others = [place for place in range(len(intrinsic.names)) if place != goal]
        resting = graph.moves.new_zeros(count, 1, graph.moves.shape[-1])
        still = intrinsic(nodes[None, :, None], resting[None], Modulation(nodes[:1]))[0, :, 0, others].float()
        away = 1 - torch.eye(count, device=nodes.device)
        steps = torch.arange(graph.off.shape[-1], device=nodes.device)
        to_go, best = [], []
        for weights in u:
            passed = (graph.energies.float() * weights)[..., others].sum(-1) + weights[goal]
            # what the move costs so far, and the way off it at the price of its last step
            off = gamma ** (steps + 1) * (1 - gamma**graph.off) / (1 - gamma)
            edge = (passed * gamma**steps).cumsum(-1) + passed * off
            stay = ((still * weights[others]).sum(-1, keepdim=True) + weights[goal] * away) / (1 - gamma)
            found = bellman(graph.successor, edge, stay, gamma**graph.steps)
            stays = found.to_go >= 0.999 * stay  # going in circles comes to the same, but for rounding
            to_go.append(found.to_go.masked_fill(stays & (away > 0), torch.inf))
            best.append(torch.where(stays[..., None], graph.moves.shape[1], found.moves))
        moves = torch.cat([graph.moves, resting], 1)
        return _Solved(nodes.to(torch.bfloat16), u, torch.stack(to_go), torch.stack(best).to(torch.uint8), moves)
