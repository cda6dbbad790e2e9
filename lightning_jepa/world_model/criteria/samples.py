"""Which numbers of a batch of states count as samples of what.

Legend: B batch, T time, D state, E expanded, c h w a state seen as a map, G groups, N samples in a group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_jepa.world_model.criteria.statistics import check_samples, everywhere, precise


class Samples(nn.Module):
    """States [B, T, D] as groups of samples [G, N, D or E], whose statistics are taken together.

    Args:
        over: the samples that statistics are taken over. "batch_time": all states of a batch. "batch": the states of
            the same time step, so that what stays constant in an episode can't vary over time to please the criterion.
            "time": the states of the same episode, so that what tells episodes apart does not count. "place": all
            states of a batch, of which each place of the map is told by how it differs from its own mean, so that a
            picture of nothing but the places themselves can't please the criterion.
        expander: v = Exp(s), of which samples are taken in place of s; none for s itself.
        state_shape: (c, h, w) of states that are maps: locations then count as samples, and the c channels as features.

    Raises:
        ValueError: if `over` is unknown or `state_shape` is no map.
    """

    def __init__(
        self, over: str = "batch_time", expander: nn.Module | None = None, state_shape: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if over not in ("batch_time", "batch", "time", "place"):
            raise ValueError(f"over={over!r}: choose 'batch_time', 'batch', 'time' or 'place'")
        if state_shape is not None and len(state_shape) != 3:
            raise ValueError(f"state_shape={list(state_shape)}: expected a map [c, h, w], or none for vectors")
        if over == "place" and state_shape is None:
            raise ValueError("over='place' needs states that are maps: give their state_shape [c, h, w]")
        self.over = over
        self.expander = nn.Identity() if expander is None else expander
        self.map_shape = None if state_shape is None else tuple(state_shape)

    @property
    def joint(self) -> bool:
        """Whether other processes have samples of the same groups."""
        return self.over != "time"

    def forward(self, states: Tensor) -> Tensor:
        """[B, T, D] -> [G, N, D or E].

        Raises:
            ValueError: if the states are not of the given shape, or too few to differ from their mean.
        """
        samples = states[:, :, None]
        if self.map_shape is not None:
            if states.shape[2] != math.prod(self.map_shape):
                raise ValueError(f"states of {states.shape[2]} numbers are no maps of shape {self.map_shape}")
            samples = states.unflatten(2, self.map_shape).flatten(3).transpose(2, 3)  # [B, T, h w, c]
        expanded: Tensor = self.expander(samples)
        rows, times = states.shape[:2]
        if self.map_shape is not None:  # places of one picture are not yet samples
            count = {"batch": rows, "time": times}.get(self.over, rows * times)
            check_samples(count, self.joint, f"a criterion of maps (over={self.over!r})")
        if self.over == "place":
            expanded = precise(expanded)
            total = everywhere(expanded.new_tensor(count))
            expanded = expanded - everywhere(expanded.sum((0, 1))) / total
        if self.over in ("batch_time", "place"):
            return expanded.flatten(0, 2)[None]
        if self.over == "batch":
            return expanded.transpose(0, 1).flatten(1, 2)
        return expanded.flatten(1, 2)
