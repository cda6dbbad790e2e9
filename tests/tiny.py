"""The smallest classes that the entry points can join: a collection, data, a stage and an exam."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import torch
from torch import Tensor, nn

from lightning_jepa.evaluation import results
from lightning_jepa.types import Training, Window

DIGEST = "0123456789abcdef"


class TinyCollection:
    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def run(self) -> dict[str, SimpleNamespace]:
        (self.root / "train").mkdir(parents=True, exist_ok=True)
        (self.root / "train" / "manifest.json").write_text(json.dumps({"digest": DIGEST}))
        return {"train": SimpleNamespace(digest=DIGEST)}


class Windows:
    """`batches` different batches of one level, observations [4, 2, 1, 1, 3]; knows its place in the epoch."""

    def __init__(self, batches: int) -> None:
        self.batches, self.start, self.index = batches, 0, 0

    def __iter__(self) -> Iterator[tuple[Window, ...]]:
        first, self.start = self.start, 0
        for index in range(first, self.batches):
            self.index = index + 1
            generator = torch.Generator().manual_seed(index)
            pixels = torch.randint(256, (4, 2, 1, 1, 3), dtype=torch.uint8, generator=generator)
            empty = torch.zeros(4, 2, 0)
            times = torch.arange(2).expand(4, 2)
            mask = torch.ones(4, dtype=torch.bool)
            none = torch.zeros(4, 0)
            actions, plans = torch.zeros(4, 1, 1, 2), torch.zeros(4, 1, 1, 0)
            yield (Window(pixels, actions, empty, empty, empty, plans, none, none, times, mask),)

    def __len__(self) -> int:
        return self.batches

    def state_dict(self) -> dict[str, int]:
        return {"index": self.index}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = state["index"] % self.batches


class TinyData(L.LightningDataModule):
    def __init__(self, root: str, batches: int) -> None:
        super().__init__()
        self.root, self.batches, self.digests = Path(root), batches, {"train": DIGEST}

    def setup(self, stage: str) -> None:
        if not (self.root / "train" / "manifest.json").is_file():
            raise ValueError(f"the folder of episodes {self.root} is missing. Run the collection")

    def train_dataloader(self) -> Windows:
        return Windows(self.batches)

    def val_dataloader(self) -> Windows:
        return Windows(1)


class TinyStage(L.LightningModule):
    def __init__(self, size: int, lr: float) -> None:
        super().__init__()
        self.map, self.lr = nn.Linear(3, size), lr

    def energy(self, batch: tuple[Window, ...]) -> Tensor:
        return self.map(batch[0].observations.float() / 255).pow(2).mean()

    def training_step(self, batch: tuple[Window, ...], index: int) -> Tensor:
        energy = self.energy(batch)
        self.log("train/energy", energy, prog_bar=True)
        return energy

    def validation_step(self, batch: tuple[Window, ...], index: int) -> None:
        self.log("val/energy", self.energy(batch), batch_size=4)
        self.log("monitor/step", float(self.global_step), batch_size=4)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Forgetful(nn.Module):
    """Takes a built object besides plain values; complains about negative ones."""

    def __init__(self, part: nn.Module, factor: float = 1.0) -> None:
        super().__init__()
        if factor < 0:
            raise ValueError(f"factor={factor}: expected at least 0")
        self.part, self.factor = part, factor


class TinyExam:
    def __init__(self, experiment: str) -> None:
        self.experiment = experiment

    def run(self, stage: L.LightningModule, seed: int, out: Path, training: Training) -> dict[str, float]:
        assert not stage.training
        rows = {"mode2_success": results.proportion(8 + seed, 10)}
        found = results.Results(
            self.experiment, "2026-01-01", "abc", "1 core", [seed], {"episodes": 10}, rows, cost={**training.cost}
        )
        results.save(found, out / f"seed_{seed}.json")
        (out / "figure.txt").write_text("a picture")
        return {"mode2_success": 0.8}
