"""Random mazes: cells in a square, one way between any two of them.

Legend: B layouts, n cells along a side, E pairs of neighbouring cells.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from data_pipelines.plan import hashed
from data_pipelines.worlds.layouts import HIGH, LOW, enclosed, of_split


class MazeLayouts:
    """Mazes of n x n cells whose passages are a random spanning tree; every fifth maze is held out.

    A maze is the tree of least weight over random weights of its passages. Which split it belongs to is a hash of its
    passages, so that two numbers that draw the same maze are in the same split. Cells are numbered row by row.
    Walls are as thick as corridors are wide, as in mazes whose walls are cells too.

    Args:
        cells: n.
        count: mazes that are numbered.

    Raises:
        ValueError: if there is nothing to pass, or a cell would be too narrow for the agent.
    """

    def __init__(self, cells: int = 5, count: int = 8192) -> None:
        if not 2 <= cells <= 9 or count < 10:
            raise ValueError(f"cells={cells}, count={count}: give 2 to 9 cells along a side and at least 10 mazes")
        self.cells, self.count = cells, count
        self.factor_names = tuple(f"passage_{a}_{b}" for a, b in self.pairs.tolist())

    @property
    def side(self) -> float:
        """Of a cell, pixels, from the middle of one wall to that of the next."""
        return (HIGH - LOW - 1) / self.cells

    @property
    def half_wall(self) -> float:
        """Half the thickness of a wall, pixels."""
        return self.side / 4

    @property
    def pairs(self) -> Tensor:
        """Neighbouring cells, [E, 2]: those side by side first, then those one above the other."""
        number = torch.arange(self.cells**2).view(self.cells, self.cells)
        across = torch.stack([number[:, :-1], number[:, 1:]], -1)
        down = torch.stack([number[:-1], number[1:]], -1)
        return torch.cat([across.flatten(0, 1), down.flatten(0, 1)])

    def ids(self, split: str) -> Tensor:
        """Layout ids of "train" or "held_out"."""
        return of_split(split, _held_out(self.cells, self.count))

    def factors(self, ids: Tensor) -> Tensor:
        """[B] -> [B, E]: 1 where there is a passage, 0 where there is a wall."""
        first, second = self.pairs.unbind(-1)
        drawn = hashed(ids.cpu().numpy()[:, None], np.arange(len(first)))
        weight = torch.from_numpy((drawn >> np.uint64(11)).astype(np.float64) / 2**53)
        # The least weight that the worst passage on a way between two cells can have. A passage is part of the tree of
        # least weight if no other way between its cells does better.
        worst = torch.full((len(ids), self.cells**2, self.cells**2), torch.inf, dtype=torch.float64)
        worst[:, first, second] = worst[:, second, first] = weight
        for by in range(self.cells**2):
            worst = torch.minimum(worst, torch.maximum(worst[:, :, by, None], worst[:, by, None, :]))
        return (weight <= worst[:, first, second]).float().to(ids.device)

    def walls(self, ids: Tensor) -> Tensor:
        """[B] -> [B, 4 + (n - 1)^2, 4]: four border walls and those between cells without a passage."""
        closed = (self.factors(ids) == 0).nonzero()[:, 1].view(len(ids), -1)
        return enclosed(self._between()[closed])

    def rooms(self, ids: Tensor) -> Tensor:
        """[B] -> [B, n^2, 4]: the cells, as far as they are free."""
        corner = self.corners()
        box = torch.cat([corner, corner + self.side], -1)
        inner = box + self.half_wall * torch.tensor([1.0, 1.0, -1.0, -1.0])
        return inner.expand(len(ids), -1, -1)

    def corners(self) -> Tensor:
        """The corner of each cell where x and y are least, [n^2, 2]."""
        row, column = torch.meshgrid(torch.arange(self.cells), torch.arange(self.cells), indexing="ij")
        return LOW + 0.5 + self.side * torch.stack([column, row], -1).flatten(0, 1).float()

    def cell_of(self, positions: Tensor) -> Tensor:
        """Which cell positions [..., 2] lie in, [...]."""
        column, row = ((positions - LOW - 0.5) / self.side).long().clamp(0, self.cells - 1).unbind(-1)
        return row * self.cells + column

    def steps(self, ids: Tensor) -> Tensor:
        """How many passages lie between any two cells, [B, n^2, n^2]."""
        first, second = self.pairs.unbind(-1)
        away = torch.where(self.factors(ids) > 0, 1.0, torch.inf)
        length = torch.full((len(ids), self.cells**2, self.cells**2), torch.inf)
        length[:, first, second] = length[:, second, first] = away
        length.diagonal(dim1=1, dim2=2).zero_()
        for by in range(self.cells**2):
            length = torch.minimum(length, length[:, :, by, None] + length[:, by, None, :])
        return length.long()

    def _between(self) -> Tensor:
        """The wall that would close each passage, [E, 4], long enough to meet those beside it."""
        corner, thick = self.corners()[self.pairs[:, 1]], self.half_wall
        across = (self.pairs[:, 1] - self.pairs[:, 0] == 1)[:, None]
        upright = corner.new_tensor([-thick, -thick, thick, self.side + thick])
        lying = corner.new_tensor([-thick, -thick, self.side + thick, thick])
        return corner.repeat(1, 2) + torch.where(across, upright, lying)


@cache
def _held_out(cells: int, count: int) -> Tensor:
    """Which mazes are held out, bool [count]."""
    passages = MazeLayouts(cells, count).factors(torch.arange(count)).long().numpy()
    return torch.from_numpy(hashed(*passages.T) % np.uint64(5) == 0)
