"""The README's tables, made from the results files: `python -m lightning_jepa.evaluation.readme`; and their summary.

Replaces what stands between `<!-- results:NAME -->` and `<!-- /results:NAME -->` by the tables of results/NAME.json.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from lightning_jepa.evaluation.results import Figure, Results, Rows, load

BLOCK = re.compile(r"(<!-- results:(?P<name>[\w.]+) -->\n).*?(<!-- /results:(?P=name) -->)", re.DOTALL)


def number(value: float) -> str:
    """Three significant digits, thousands grouped."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 10 else f"{value:.3f}".rstrip("0").rstrip(".") or "0"


def cell(figure: Figure) -> str:
    """Value with its interval, which a single number does not have."""
    if figure.low == figure.high:
        return number(figure.value)
    return f"{number(figure.value)} [{number(figure.low)}, {number(figure.high)}]"


def readme_table(results: Results) -> str:
    """All tables of one experiment in Markdown: metrics with targets and controls, floors, further tables, cost."""
    seeds = ", ".join(str(seed) for seed in results.seeds)
    lines = [_table("metric | result [95 % interval] | n | target | controls", _metric_rows(results))]
    if results.floors:
        rows = [f"{_words(key)} | {cell(figure)} | {figure.n:,}" for key, figure in results.floors.items()]
        lines.append(_table("floor or ceiling | result [95 % interval] | n", rows))
    for name, table in results.tables.items():
        columns = list(next(iter(table.values()), {}))
        header = f"{_words(name)} | n | " + " | ".join(_words(column) for column in columns)
        rows = [_row(row, figures, columns) for row, figures in table.items()]
        lines.append(_table(header, rows))
    costs = [_cost_row(results, key) for key in results.cost if key not in results.metrics]
    if costs:
        lines.append(_table("cost | value | target", costs))
    protocol = "; ".join(f"{_words(key)}: {value}" for key, value in results.protocol.items())
    where = f"Seeds {seeds}, {results.date}, commit {results.git}, {results.machine}."
    lines.append(f"{where} {protocol}.")
    return "\n\n".join(lines) + "\n"


def summary(results: Results) -> str:
    """The metrics that have a target or a label, a line each, and the protocol's note, for the console."""
    rows = {
        results.targets[key].get("label", key): cell(figure)
        for key, figure in results.metrics.items()
        if key in results.targets
    }
    width = max(map(len, rows), default=0)
    lines = [f"  {label:<{width}}  {value}" for label, value in rows.items()]
    return "\n".join([*lines, *([f"note: {results.protocol['note']}"] if "note" in results.protocol else [])])


def refresh(text: str, folder: Path) -> str:
    """The text with each marked block filled from its results file; blocks without a file stay as they are."""

    def fill(match: re.Match[str]) -> str:
        path = folder / f"{match['name']}.json"
        return f"{match[1]}{readme_table(load(path))}{match[3]}" if path.exists() else match[0]

    return BLOCK.sub(fill, text)


def _metric_rows(results: Results) -> list[str]:
    rows = []
    for key, figure in results.metrics.items():
        target = results.targets.get(key, {})
        label = f"{target['label']} (`{key}`)" if "label" in target else f"`{key}`"
        controls = ", ".join(f"{_words(name)} {number(c.value)}" for name, c in results.controls.get(key, {}).items())
        rows.append(f"{label} | {cell(figure)} | {figure.n:,} | {_target(figure.value, target)} | {controls}")
    return rows


def _cost_row(results: Results, key: str) -> str:
    target, value = results.targets.get(key, {}), results.cost[key]
    return f"{target.get('label', _words(key))} | {number(value)} | {_target(value, target)}"


def _target(value: float, target: dict[str, Any]) -> str:
    wanted = []
    if "at_least" in target:
        wanted.append((f">= {target['at_least']}", value >= float(target["at_least"])))
    if "at_most" in target:
        wanted.append((f"<= {target['at_most']}", value <= float(target["at_most"])))
    return ", ".join(f"{text} ({'met' if met else 'missed'})" for text, met in wanted)


def _row(name: str, figures: Rows, columns: list[str]) -> str:
    cells = [cell(figures[column]) if column in figures else "" for column in columns]
    n = max(figure.n for figure in figures.values())
    return f"{_words(name)} | {n:,} | " + " | ".join(cells)


def _table(header: str, rows: list[str]) -> str:
    rule = "|".join("---" for _ in header.split("|"))
    return "\n".join(f"| {row} |" for row in [header, *rows]).replace(f"| {header} |", f"| {header} |\n|{rule}|", 1)


def _words(key: str) -> str:
    return key.replace("_", " ")


def main(arguments: list[str] | None = None) -> None:
    """Rewrite the README in place."""
    parser = argparse.ArgumentParser(description="Fill the README's tables from the results files.")
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    given = parser.parse_args(arguments)
    if not given.readme.is_file():
        parser.error(f"{given.readme} does not exist: run this in the repository's root, or give --readme")
    text = given.readme.read_text(encoding="utf-8")
    fresh = refresh(text, given.results)
    if fresh != text:
        given.readme.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
