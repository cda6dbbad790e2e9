"""Episodes side by side as a GIF: what the agent sees, its trail, its goal and its present plan.

Legend: N episodes, T steps, H horizon, C H W image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Sheet
from PIL import Image
from torch import Tensor

from lightning_jepa.evaluation.figures import BLUE, GREEN, ORANGE, STYLE


@dataclass(frozen=True)
class Film:
    """N episodes: pictures uint8 [N, T, C, H, W], positions [N, T, 2], goals [N, 2], plans (decoded) [N, T, H, 2]."""

    frames: Tensor
    positions: Tensor
    goals: Tensor
    plans: Tensor


def picture(frame: Tensor) -> np.ndarray:
    """Agent and walls, uint8 [2, H, W], as a light picture [H, W, 3]: walls dark, the agent orange."""
    agent, walls = (frame[channel].cpu().numpy().astype(np.float64) / 255 for channel in (0, 1))
    ink = np.array([0.83, 0.81, 0.79])  # what a wall takes away from white
    spot = np.array([0.10, 0.38, 1.0])  # what the agent takes away: the rest is orange
    taken = np.maximum(walls[..., None] * ink, agent[..., None] * spot)
    return 1 - taken


def save_gif(path: Path, film: Film, stride: int = 4, rate: int = 10, radius: float = 4.5) -> None:
    """Write every `stride`-th step at `rate` pictures a second; ends a second after the last arrival."""
    arrived = (film.positions - film.goals[:, None]).norm(dim=-1) < radius
    last = film.positions.shape[1] - 1
    if arrived.any(1).all():
        last = min(last, int(arrived.int().argmax(1).max()) + rate * stride)
    count, pixels = len(film.goals), film.frames.shape[-1]
    edge = 64 / (pixels - 1) / 2  # half a pixel, in the world's unit: pixels are centred on coordinates
    images = []
    with rc_context(STYLE):
        for step in range(0, last + 1, stride):
            page = Sheet(figsize=(2.0 * count, 2.15), layout="constrained")
            canvas = FigureCanvasAgg(page)
            panels = np.asarray(page.subplots(1, count, squeeze=False)).ravel()
            for row, axes in enumerate(panels):
                axes.imshow(picture(film.frames[row, step]), extent=(-edge, 64 + edge, 64 + edge, -edge))
                axes.plot(*film.plans[row, step].cpu().T, color=BLUE, linewidth=1, alpha=0.8)
                axes.plot(*film.positions[row, : step + 1].cpu().T, color=ORANGE, linewidth=1.5, alpha=0.7)
                axes.plot(*film.goals[row].cpu(), "*", color=GREEN, markersize=11)
                axes.set(xlim=(2, 62), ylim=(62, 2), xticks=[], yticks=[])
                axes.set_title(f"step {step}" + (", there" if arrived[row, step] else ""))
                for spine in axes.spines.values():
                    spine.set_visible(False)
            canvas.draw()
            images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()).quantize(64))
    path.parent.mkdir(parents=True, exist_ok=True)
    images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / rate), loop=0)
