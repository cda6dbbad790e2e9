"""Temporal smoothness of states.

Legend: B batch, T time, D state.
"""

from __future__ import annotations

from torch import Tensor, nn

from lightning_jepa.types import Encoded


class TemporalSmoothness(nn.Module):
    """States change little from step to step: smoothness = mean |s[t+1] - s[t]|^2 / D.

    The paper asks for representations that are easy to predict over time (section 4.5); this pull towards slow features
    is PLDM's. It makes distances between states grow with the time it takes to get from one to the other. Alone it
    collapses.
    """

    def forward(self, batch: Encoded) -> dict[str, Tensor]:
        """The term "smoothness" of its states.

        Raises:
            ValueError: if there is no second state.
        """
        states = batch.states
        if states.shape[1] < 2:
            raise ValueError(f"windows of {states.shape[1]} state(s): smoothness needs at least 2")
        return {"smoothness": states.diff(dim=1).square().mean()}
