"""Mode-1 in the place of Mode-2: what the policy proposes is the plan, and nothing is searched.

Legend: B episodes, H horizon, A action, D state.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from lightning_jepa.actor.planners.shooting import Search, check_counts, check_positive
from lightning_jepa.protocols import Cost, WorldModel
from lightning_jepa.types import Modulation, Plan


class Reactive:
    """A planner that carries out the proposal it starts from (paper section 3.1.1).

    It is for a level of a hierarchy that has a policy, while others plan. It imagines where that leads, once, as
    those who ask for a plan look at its states too.

    Args:
        horizon: H, actions in a plan, at most.
        action_bound: largest norm of an action.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(self, horizon: int, action_bound: float) -> None:
        check_counts(horizon=horizon)
        check_positive(action_bound=action_bound)
        self.horizon, self.action_bound = horizon, action_bound

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
        """See `protocols.Planner`.

        Raises:
            ValueError: if nothing was proposed.
        """
        if start is None:
            raise ValueError(
                "planner=reactive does what a policy proposes, and there is none: train the level with a `reach` "
                "(conf/level2), or choose cem"
            )
        search = Search(s, world_model, cost, modulation, memory_mb=256.0)
        search.evaluate(start[:, None, : self.horizon])
        return search.plan()
