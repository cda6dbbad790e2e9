"""Pictures as pairs (x, y) for a joint embedding: two views of the same picture, or a part and the whole.

A window of one picture becomes one of two, x first; what a JEPA learns of them is what it learns of successive frames.
Legend: B batch, C H W image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from lightning_jepa.types import Window


class Views(nn.Module, ABC):
    """What makes x and y of a picture; a subclass says how. The same seed, step and process make the same views.

    Args:
        seed: of all that is random.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("drawn", torch.tensor(0))  # in checkpoints, so that a resumed run draws what comes next
        self.drawn: Tensor

    def forward(self, window: Window) -> Window:
        """A window of single pictures [B, 1, ...] -> one of pairs [B, 2, ...], without actions between them.

        Raises:
            ValueError: if it holds more than one picture.
        """
        if window.observations.shape[1] != 1:
            raise ValueError(
                f"windows of {window.observations.shape[1]} frames: views are made of single pictures; give "
                "data.levels [{length: 1, stride: 1}]"
            )
        if self.training:
            self.drawn += 1
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        generator = Generator().manual_seed(self.seed * 1_000_003 + int(self.drawn) + 250_000_013 * rank)
        x, y = self.pair(window.observations[:, 0], generator)
        nothing = window.body.new_zeros(len(x), 1, 1, 0)
        twice = {name: getattr(window, name).repeat_interleave(2, 1) for name in ("body", "energies", "truth", "times")}
        return window._replace(observations=torch.stack([x, y], 1), actions=nothing, plans=nothing, **twice)

    @abstractmethod
    def pair(self, pictures: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """uint8 [B, C, H, W] -> x and y of the same shape."""


class TwoViews(Views):
    """Two views of the same picture: moved, scaled, turned, mirrored, lighter or darker, with a patch erased.

    Args:
        shift: largest displacement, as a share of the side.
        scale: largest factor (and its inverse the least) by which it is scaled.
        turn: largest angle, degrees.
        mirror: how often left and right are exchanged.
        light: largest share by which it gets lighter or darker.
        erase: largest side of the erased square, as a share of the side.
        seed: see `Views`.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        shift: float = 0.1,
        scale: float = 1.2,
        turn: float = 10.0,
        mirror: float = 0.5,
        light: float = 0.3,
        erase: float = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if min(shift, turn, light, erase, mirror) < 0 or scale < 1 or max(mirror, light, erase) > 1:
            raise ValueError(
                f"shift={shift}, scale={scale}, turn={turn}, mirror={mirror}, light={light}, erase={erase}: give a "
                "scale of at least 1, shares between 0 and 1, and no negative numbers"
            )
        self.shift, self.scale, self.turn, self.mirror = shift, scale, turn, mirror
        self.light, self.erase = light, erase

    def pair(self, pictures: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """See `Views`."""
        scaled = pictures.float() / 255
        x, y = (self._view(scaled, generator).clamp(0, 1).mul(255).round().to(torch.uint8) for _ in range(2))
        return x, y

    def _view(self, pictures: Tensor, generator: Generator) -> Tensor:
        count, _, height, width = pictures.shape

        def draw(low: float, high: float, *shape: int) -> Tensor:
            return (low + (high - low) * torch.rand(count, *shape, generator=generator)).to(pictures)

        angle = torch.deg2rad(draw(-self.turn, self.turn))
        size = draw(-math.log(self.scale), math.log(self.scale)).exp()
        side = 1 - 2 * (draw(0, 1) < self.mirror).float()
        first = torch.stack([angle.cos() * side, -angle.sin()], -1) / size[:, None]
        second = torch.stack([angle.sin() * side, angle.cos()], -1) / size[:, None]
        moved = draw(-2 * self.shift, 2 * self.shift, 2)
        affine = torch.cat([torch.stack([first, second], 1), moved[..., None]], -1)
        grid = F.affine_grid(affine, list(pictures.shape), align_corners=False)
        view = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
        view = view * draw(1 - self.light, 1 + self.light, 1, 1, 1)
        inside = torch.ones(count, 1, height, width, device=pictures.device)
        half = draw(0, self.erase / 2, 1)
        for axis, extent in ((2, height), (3, width)):
            places = (torch.arange(extent, device=pictures.device) + 0.5) / extent
            near = (places - draw(0, 1, 1)).abs() < half
            inside = inside * near.view(count, 1, *(extent if dim == axis else 1 for dim in (2, 3)))
        return view * (1 - inside)


class MaskedView(Views):
    """A part and the whole: x has square blocks hidden, y is the picture itself. What is hidden has to be inferred.

    Args:
        block: side of a block, pixels.
        hidden: share of the blocks that is hidden.
        seed: see `Views`.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(self, block: int = 7, hidden: float = 0.5, seed: int = 0) -> None:
        super().__init__(seed)
        if block < 1 or not 0 < hidden < 1:
            raise ValueError(f"block={block}, hidden={hidden}: give a side of at least 1 and a share between 0 and 1")
        self.block, self.hidden = block, hidden

    def pair(self, pictures: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """See `Views`."""
        count, _, height, width = pictures.shape
        rows, columns = math.ceil(height / self.block), math.ceil(width / self.block)
        seen = torch.rand(count, 1, rows, columns, generator=generator) >= self.hidden
        mask = seen.repeat_interleave(self.block, 2).repeat_interleave(self.block, 3)[:, :, :height, :width]
        return pictures * mask.to(pictures), pictures
