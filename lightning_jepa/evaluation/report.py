"""What all exams share: whom they examine, and how they write down what they measured for one seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from lightning_jepa.evaluation import provenance
from lightning_jepa.evaluation.results import Results, Rows, save


class Trained(Protocol):
    """A trained stage."""

    def to(self, device: torch.device) -> Any:
        """Move all of it."""
        ...

    def eval(self) -> Any:
        """Freeze what behaves differently in training."""
        ...


@dataclass(frozen=True)
class Report:
    """Words and targets of an exam, the same for every seed.

    Attributes:
        experiment: its name.
        protocol: how it measures, in words and numbers.
        targets: for a metric, its label and `at_least` or `at_most`.
        note: what a reader of the results has to know before anything else.
    """

    experiment: str
    protocol: Mapping[str, Any]
    targets: Mapping[str, Mapping[str, Any]] | None
    note: str | None

    def write(
        self,
        out: Path,
        seed: int,
        metrics: Rows,
        cost: Mapping[str, float],
        *,
        floors: Rows | None = None,
        controls: dict[str, Rows] | None = None,
        tables: dict[str, dict[str, Rows]] | None = None,
    ) -> Results:
        """Save `out/seed_<seed>.json`; for its sections see `Results`."""
        results = Results(
            experiment=self.experiment,
            date=provenance.today(),
            git=provenance.git_sha(),
            machine=provenance.machine(),
            seeds=[seed],
            protocol={**self.protocol} | ({} if self.note is None else {"note": self.note}),
            metrics=metrics,
            floors=floors or {},
            controls=controls or {},
            tables=tables or {},
            cost=dict(cost),
            targets={key: dict(target) for key, target in (self.targets or {}).items()},
        )
        save(results, out / f"seed_{seed}.json")
        return results
