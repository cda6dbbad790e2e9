"""Places seen from above, seen from another side: eight times as many of them.

Legend: B batch, T time, C H W image.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from lightning_jepa.types import Window


class Turned:
    """Each episode of a window by quarter turns and mirrored, at random, all its pictures alike.

    A maze seen from above stays a maze, and a walk in it a walk; what was done to walk it is another action, which
    becomes unknown (NaN), and the truth of the simulator is no longer that of the pictures.
    """

    def __call__(self, window: Window, generator: Generator) -> Window:
        """Observations [B, T, C, H, W] of the same shape.

        Raises:
            ValueError: if pictures are not square.
        """
        seen = window.observations
        if seen.shape[-1] != seen.shape[-2]:
            raise ValueError(
                f"pictures of {seen.shape[-2]} x {seen.shape[-1]} can't be turned: leave out the stage's view"
            )
        chosen = torch.randint(8, (len(seen),), generator=generator).tolist()
        turned = torch.stack([_turned(pictures, which) for pictures, which in zip(seen, chosen, strict=True)])
        return window._replace(observations=turned, actions=torch.full_like(window.actions, torch.nan))


def _turned(pictures: Tensor, which: int) -> Tensor:
    """One of the eight views of pictures [..., H, W]."""
    pictures = torch.rot90(pictures, which % 4, (-2, -1))
    return pictures.flip(-1) if which >= 4 else pictures
