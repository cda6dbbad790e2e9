"""Mode-2 by trying everything, where actions are few and plans are short.

Legend: B episodes, S sequences, H horizon, A action, N actions there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from lightning_jepa.actor.planners.shooting import Search, check_counts, check_positive
from lightning_jepa.protocols import Cost, WorldModel
from lightning_jepa.types import Modulation, Plan


class Exhaustive:
    """Mode-2 by enumeration: the least F(a) of all S = N ** H sequences, exactly.

    For a world whose actions are choices rather than amounts: a sampler would ask the world model for actions that lie
    between them, which no data hold.

    Args:
        actions: those there are, [N, A].
        horizon: H, actions in a plan.
        most: bound on S.
        memory_mb: bound on the imagined states held at once.

    Raises:
        ValueError: if there are too many sequences, or a number is out of its range.
    """

    def __init__(
        self, actions: Sequence[Sequence[float]], horizon: int, most: int = 4096, memory_mb: float = 256.0
    ) -> None:
        check_counts(horizon=horizon, most=most)
        check_positive(memory_mb=memory_mb)
        if not 0 < len(actions) ** horizon <= most:
            raise ValueError(
                f"{len(actions)} actions over {horizon} steps are {len(actions) ** horizon} sequences, and "
                f"planner.most allows 1 to {most}: give fewer actions, a shorter planner.horizon, or plan by sampling "
                "(planner=cem)"
            )
        self.horizon, self.memory_mb = horizon, memory_mb
        sequences = list(itertools.product(actions, repeat=horizon))
        self.sequences = torch.tensor(sequences, dtype=torch.float32)  # [S, H, A]
        self.action_bound = float(self.sequences.norm(dim=-1).max())

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
        """See `protocols.Planner`; start and generator play no part, as nothing is left untried."""
        search = Search(s, world_model, cost, modulation, self.memory_mb)
        search.evaluate(self.sequences.to(s).expand(len(s), -1, -1, -1))
        return search.plan()
