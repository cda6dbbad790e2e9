"""The results file: one JSON for each experiment, machine-written; a number that is not in one does not exist.

`python -m lightning_jepa.evaluation.results A.json B.json --to results/two_rooms.json` joins seeds that were measured
apart.

A figure is a proportion (it carries its successes; seeds are pooled, Wilson interval) or a mean (Student's t interval:
over seeds where there are several, else over the n windows, layouts or episodes of the one seed).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_jepa.evaluation.intervals import mean_interval, wilson


@dataclass(frozen=True)
class Figure:
    """One measured number with its 95 % interval; n trials stand behind it."""

    value: float
    low: float
    high: float
    n: int
    successes: int | None = None  # a proportion has them, a mean does not
    by_seed: list[float] = field(default_factory=list)


Rows = dict[str, Figure]


def proportion(successes: int, n: int) -> Figure:
    """A share of n trials."""
    low, high = wilson(successes, n)
    return Figure(successes / n, low, high, n, successes)


def mean(values: Iterable[float]) -> Figure:
    """A mean of independent values."""
    listed = [float(v) for v in values]
    value, low, high = mean_interval(listed)
    return Figure(value, low, high, len(listed))


@dataclass(frozen=True)
class Results:
    """What one experiment measured.

    Attributes:
        protocol: how it was measured, in words and numbers.
        metrics: the exam's keys.
        floors: what needs no learning, in the same unit as the experiment's main metric.
        controls: for a metric, what it has to be told apart from.
        tables: further tables, rows of figures (planners, diagnosis, ...).
        cost: plain numbers: seconds, frames, milliseconds.
        targets: for a metric, its label and `at_least` or `at_most`.
    """

    experiment: str
    date: str
    git: str
    machine: str
    seeds: list[int]
    protocol: dict[str, Any]
    metrics: Rows
    floors: Rows = field(default_factory=dict)
    controls: dict[str, Rows] = field(default_factory=dict)
    tables: dict[str, dict[str, Rows]] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    targets: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, float]:
        """Metric -> its value."""
        return {key: figure.value for key, figure in self.metrics.items()}


def save(results: Results, destination: Path) -> None:
    """Write JSON beside the destination and rename it, so that nobody ever reads half a file."""
    text = json.dumps(_without_none(asdict(results)), indent=2, allow_nan=False) + "\n"
    destination.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=destination.parent, prefix=f".{destination.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.chmod(0o644)
        temporary.replace(destination)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> Results:
    """Read and check a results file.

    Raises:
        ValueError: if the file is not JSON, lacks or adds keys, or holds a figure outside of its interval.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw["metrics"], raw["floors"] = _rows(raw["metrics"]), _rows(raw.get("floors", {}))
        raw["controls"] = {key: _rows(rows) for key, rows in raw.get("controls", {}).items()}
        raw["tables"] = {t: {r: _rows(row) for r, row in table.items()} for t, table in raw.get("tables", {}).items()}
        return Results(**raw)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is not a results file ({error}); write it again with the evaluate command") from error


def merge(paths: Sequence[Path], destination: Path) -> Results:
    """Join the files of seeds, single ones or some that were joined before, into one, and write it.

    Proportions are pooled over seeds (Wilson interval on all trials); other figures become the mean over seeds with its
    t interval. Sections and keys must agree.

    Raises:
        ValueError: if there is no file, two hold the same seed, or they differ in experiment, protocol or keys.
    """
    if not paths:
        raise ValueError("no results files to merge: give one JSON for each seed, as written by the evaluate command")
    parts = [load(path) for path in paths]
    first, seeds = parts[0], [seed for part in parts for seed in part.seeds]
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds {seeds}: a seed is there twice; give each seed's file once")
    for name in ("experiment", "protocol", "targets"):
        for path, part in zip(paths, parts, strict=True):
            if getattr(part, name) != getattr(first, name):
                raise ValueError(f"{path} and {paths[0]} differ in {name}: evaluate both seeds with the same settings")
    commits = sorted({commit for part in parts for commit in part.git.split()})
    merged = Results(
        experiment=first.experiment,
        date=max(part.date for part in parts),
        git=" ".join(commits),
        machine="; ".join(sorted({machine for part in parts for machine in part.machine.split("; ")})),
        seeds=seeds,
        protocol=first.protocol,
        metrics=_join([part.metrics for part in parts]),
        floors=_join([part.floors for part in parts]),
        controls={k: _join([part.controls[k] for part in parts]) for k in _same([p.controls for p in parts])},
        tables={
            table: {
                row: _join([part.tables[table][row] for part in parts])
                for row in _same([part.tables[table] for part in parts])
            }
            for table in _same([part.tables for part in parts])
        },
        cost={
            k: math.fsum(part.cost[k] * len(part.seeds) for part in parts) / len(seeds)
            for k in _same([p.cost for p in parts])
        },
        targets=first.targets,
    )
    save(merged, destination)
    return merged


def compared(
    arms: Mapping[str, Results], headline: Mapping[str, str], columns: Sequence[str], destination: Path
) -> Results:
    """Join the results of an experiment's arms into one file, and write it.

    Args:
        arms: the results of each.
        headline: metric -> "arm.metric", what the experiment is judged by; or the difference of two such, "A.M - B.N".
        columns: metrics of the table `arms`, which has a row for each arm; those that an arm has.
        destination: of the file. Costs are sums over all arms; floors and controls are those of the first.

    Raises:
        ValueError: if there is no arm, or none with what the headline asks for.
    """
    if not arms:
        raise ValueError("no results to compare: evaluate is not among the stages")
    metrics: Rows = {}
    for key, source in headline.items():
        figures = []
        for term in source.split(" - "):
            arm, _, metric = term.partition(".")
            if arm not in arms or metric not in arms[arm].metrics:
                raise ValueError(
                    f"comparison.headline.{key}={source}: expected ARM.METRIC or the difference of two such, arms of "
                    f"{list(arms)} and what they measured"
                )
            figures.append(arms[arm].metrics[metric])
        metrics[key] = figures[0] if len(figures) == 1 else _difference(*figures)
    parts = list(arms.values())
    first = parts[0]
    rows = {name: {key: arm.metrics[key] for key in columns if key in arm.metrics} for name, arm in arms.items()}
    further = {f"{table}_{name}": found for name, arm in arms.items() for table, found in arm.tables.items()}
    joined = Results(
        experiment=first.experiment,
        date=max(part.date for part in parts),
        git=" ".join(sorted({commit for part in parts for commit in part.git.split()})),
        machine="; ".join(sorted({part.machine for part in parts})),
        seeds=max((part.seeds for part in parts), key=len),
        protocol=first.protocol,
        metrics=metrics,
        floors=first.floors,
        controls={key: found for key, found in first.controls.items() if key in metrics},
        tables={"arms": rows, **further},
        cost={"training_seconds": sum(_training(part.cost) * len(part.seeds) for part in parts)},
        targets=first.targets,
    )
    save(joined, destination)
    return joined


def _training(cost: Mapping[str, float]) -> float:
    """Seconds of all stages, of one seed."""
    return sum(value for name, value in cost.items() if name.endswith("_seconds"))


def _join(rows: Sequence[Rows]) -> Rows:
    return {key: _pool([row[key] for row in rows]) for key in _same(rows)}


def _pool(figures: Sequence[Figure]) -> Figure:
    if len(figures) == 1:
        return figures[0]
    by_seed = [value for figure in figures for value in (figure.by_seed or [figure.value])]
    counts = [figure.successes for figure in figures if figure.successes is not None]
    if len(counts) not in (0, len(figures)):
        raise ValueError("a figure is a proportion in one seed's file and a mean in another's: evaluate both again")
    if counts:
        n = sum(figure.n for figure in figures)
        low, high = wilson(sum(counts), n)
        return Figure(sum(counts) / n, low, high, n, sum(counts), by_seed)
    value, low, high = mean_interval(by_seed)
    return Figure(value, low, high, len(by_seed), None, by_seed)


def _difference(more: Figure, less: Figure) -> Figure:
    """Seed by seed, as both were trained on the same data."""
    pairs = zip(more.by_seed or [more.value], less.by_seed or [less.value], strict=True)
    return mean(a - b for a, b in pairs)


def _same(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    for other in mappings[1:]:
        if set(other) != set(mappings[0]):
            difference = sorted(set(other) ^ set(mappings[0]))
            raise ValueError(f"only some seeds' files hold {difference}: evaluate every seed with the same settings")
    return list(mappings[0])


def _rows(raw: dict[str, dict[str, Any]]) -> Rows:
    rows = {}
    for key, fields in raw.items():
        figure = Figure(**fields)
        if not figure.low <= figure.value <= figure.high:
            raise ValueError(f"{key}: {figure.value} is not within its interval [{figure.low}, {figure.high}]")
        if figure.n < 1:
            raise ValueError(f"{key}: n={figure.n}, a figure needs at least one trial")
        rows[key] = figure
    return rows


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None and item != []}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m lightning_jepa.evaluation.results", description="Join results files of different seeds."
    )
    parser.add_argument("files", type=Path, nargs="+", help="of single seeds (evaluate_seed_N/seed_N.json), or joined")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE", help="the file to write")
    given = parser.parse_args()
    try:
        merged = merge(given.files, given.to)
    except ValueError as error:
        parser.exit(1, f"{error}\n")
    print(f"{given.to}: seeds {merged.seeds}")


if __name__ == "__main__":
    main()
