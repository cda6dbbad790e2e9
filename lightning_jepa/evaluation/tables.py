"""The tables of README and docs, made from the results files: `python -m lightning_jepa.evaluation.tables`.

Replaces what stands between `<!-- results:NAME -->` and `<!-- /results:NAME -->` by the main tables of
results/NAME.json, and between `<!-- results:NAME:TABLE -->` and its end by one of its further tables. In a block of the
name `all` is a row for each results file.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from lightning_jepa.evaluation.results import Figure, Results, Rows, load

BLOCK = re.compile(r"(<!-- results:(?P<mark>[\w.]+(:\w+)?) -->\n).*?(<!-- /results:(?P=mark) -->)", re.DOTALL)


def number(value: float) -> str:
    """Three significant digits, thousands grouped; more where a share is nearly but not all."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if 0.9995 <= value < 1:
        return f"{value:.5f}"
    return f"{value:.3g}" if abs(value) >= 10 else f"{value:.3f}".rstrip("0").rstrip(".") or "0"


def cell(figure: Figure) -> str:
    """Value with its interval, which a single number does not have."""
    if figure.low == figure.high:
        return number(figure.value)
    return f"{number(figure.value)} [{number(figure.low)}, {number(figure.high)}]"


def main_tables(results: Results) -> str:
    """One experiment in Markdown: metrics with targets and controls, floors, cost, and how it was measured."""
    lines = [_table("metric | result [95 % interval] | n | target | controls", _metric_rows(results))]
    if results.floors:
        rows = [f"{_words(key)} | {cell(figure)} | {figure.n:,}" for key, figure in results.floors.items()]
        lines.append(_table("floor or ceiling | result [95 % interval] | n", rows))
    costs = [_cost_row(results, key) for key in results.cost if key not in results.metrics]
    if costs:
        lines.append(_table("cost | value | target", costs))
    protocol = "; ".join(f"{_words(key)}: {value}" for key, value in results.protocol.items())
    seeds = ", ".join(str(seed) for seed in results.seeds)
    lines.append(f"Seeds {seeds}, {results.date}, commit {results.git}, {results.machine}. {protocol}.")
    return "\n\n".join(lines) + "\n"


def further_table(results: Results, name: str) -> str:
    """One of the experiment's further tables (planners, diagnosis, ...) in Markdown.

    Raises:
        ValueError: if there is none of this name.
    """
    if name not in results.tables:
        raise ValueError(f"the results of {results.experiment} have no table {name!r}, only {list(results.tables)}")
    table = results.tables[name]
    columns = max((list(row) for row in table.values()), key=lambda names: len(names), default=[])
    header = f"{_words(name)} | n | " + " | ".join(_words(column) for column in columns)
    return _table(header, [_row(row, figures, columns) for row, figures in table.items()]) + "\n"


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


def report(results: Results) -> str:
    """The summary, and where settings were compared, their table."""
    return summary(results) + (f"\n\n{further_table(results, 'arms')}" if "arms" in results.tables else "")


def overview(folder: Path) -> str:
    """What has a target, in all results files of a folder, a row for each file."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        results = load(path)
        aimed = {
            key: (number(figure.value), _wanted(figure.value, results.targets.get(key, {})))
            for key, figure in results.metrics.items()
        }
        reached, missed = (
            [
                f"`{key}` {shown}" + ("" if met else f" ({wanted[0][0]})")
                for key, (shown, wanted) in aimed.items()
                if wanted and all(fits for _, fits in wanted) == met
            ]
            for met in (True, False)
        )
        if reached or missed:
            rows.append(f"`{path.stem}` | {len(results.seeds)} | {', '.join(reached)} | {', '.join(missed)}")
    return _table("experiment | seeds | targets met | missed", rows) + "\n"


def refresh(text: str, folder: Path) -> str:
    """The text with each marked block filled from its results file; blocks without a file stay as they are.

    Raises:
        ValueError: if a block asks for a table that the file does not have.
    """

    def fill(match: re.Match[str]) -> str:
        name, _, table = match["mark"].partition(":")
        if name == "all":
            return f"{match[1]}{overview(folder)}{match.groups()[-1]}"
        path = folder / f"{name}.json"
        if not path.exists():
            return match[0]
        results = load(path)
        filled = further_table(results, table) if table else main_tables(results)
        return f"{match[1]}{filled}{match.groups()[-1]}"

    return BLOCK.sub(fill, text)


def _metric_rows(results: Results) -> list[str]:
    rows = []
    for key, figure in results.metrics.items():
        if results.targets and key not in results.targets:
            continue  # for the file alone
        target = results.targets.get(key, {})
        label = f"{target['label']} (`{key}`)" if "label" in target else f"`{key}`"
        controls = ", ".join(f"{_words(name)} {number(c.value)}" for name, c in results.controls.get(key, {}).items())
        rows.append(f"{label} | {cell(figure)} | {figure.n:,} | {_target(figure.value, target)} | {controls}")
    return rows


def _cost_row(results: Results, key: str) -> str:
    target, value = results.targets.get(key, {}), results.cost[key]
    return f"{target.get('label', _words(key))} | {number(value)} | {_target(value, target)}"


def _target(value: float, target: dict[str, Any]) -> str:
    return ", ".join(f"{text} ({'met' if met else 'missed'})" for text, met in _wanted(value, target))


def _wanted(value: float, target: dict[str, Any]) -> list[tuple[str, bool]]:
    """What is aimed at, and whether it is met."""
    wanted = []
    if "at_least" in target:
        wanted.append((f">= {target['at_least']}", value >= float(target["at_least"])))
    if "at_most" in target:
        wanted.append((f"<= {target['at_most']}", value <= float(target["at_most"])))
    return wanted


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
    """Rewrite the pages in place."""
    parser = argparse.ArgumentParser(description="Fill the tables of README.md and docs/ from the results files.")
    parser.add_argument("pages", type=Path, nargs="*", default=[Path("README.md"), *sorted(Path("docs").glob("*.md"))])
    parser.add_argument("--results", type=Path, default=Path("results"))
    given = parser.parse_args(arguments)
    for page in given.pages:
        if not page.is_file():
            parser.error(f"{page} does not exist: run this in the repository's root, or name the pages")
    try:
        fresh = {page: refresh(page.read_text(encoding="utf-8"), given.results) for page in given.pages}
    except ValueError as error:
        parser.error(f"{error}: no page was changed")
    for page, text in fresh.items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
