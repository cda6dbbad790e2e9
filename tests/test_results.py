"""The results file: intervals, writing, merging seeds, and the README's tables made from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_jepa.evaluation import provenance, results, tables
from lightning_jepa.evaluation.intervals import mean_interval, wilson
from lightning_jepa.evaluation.results import Figure, Results, load, mean, merge, proportion, save

ROOT = Path(__file__).parents[1]


def made(seed: int = 0, successes: int = 97, error: float = 1.2) -> Results:
    return Results(
        experiment="two_rooms",
        date=f"2026-01-0{seed + 1}",
        git="abc",
        machine="2 cores, 24 GiB",
        seeds=[seed],
        protocol={"episodes": 100},
        metrics={"mode2_success": proportion(successes, 100), "rollout_error_px_16": mean([error, error + 0.2])},
        floors={"random": proportion(1, 100)},
        controls={"rollout_error_px_16": {"copy_last": mean([9.0, 11.0])}},
        tables={"planners": {"cem": {"success": proportion(90, 100), "evaluations": mean([7680.0])}}},
        cost={"train_seconds": 900.0 + 100 * seed},
        targets={"mode2_success": {"label": "success", "at_least": 0.97}, "rollout_error_px_16": {"at_most": 1.0}},
    )


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (97, 100, 0.9155, 0.9897), (291, 300, 0.9440, 0.9842)],
)
def test_wilson_by_hand(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=2e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_its_equation_and_is_symmetric(case):
    """(p - bound)^2 = z^2 bound (1 - bound) / n at both bounds."""
    k, n = case
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    for bound in (low, high):
        assert (k / n - bound) ** 2 == pytest.approx(3.84145882 * bound * (1 - bound) / n, rel=1e-6, abs=1e-9)
    assert wilson(n - k, n) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("case", [(1, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(case):
    with pytest.raises(ValueError, match="between 0 and n"):
        wilson(*case)


def test_mean_interval_is_students():
    """Three seeds: t(0.975, 2) = 4.3027, sd 1, half width 4.3027 / sqrt(3)."""
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert mean_interval([5.0]) == (5.0, 5.0, 5.0)
    for bad in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="finite"):
            mean_interval(bad)


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "deep" / "seed_0.json"
    save(made(), path)
    assert load(path) == made()
    assert [file.name for file in path.parent.iterdir()] == ["seed_0.json"]
    raw = json.loads(path.read_text())
    assert {"experiment", "date", "git", "machine", "seeds", "protocol", "metrics", "floors", "cost"} <= set(raw)
    assert set(raw["metrics"]["rollout_error_px_16"]) == {"value", "low", "high", "n"}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "seed_0.json"
    save(made(), path)
    with pytest.raises(ValueError, match="JSON"):
        save(replace(made(), cost={"train_seconds": float("nan")}), path)
    assert load(path) == made()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw.pop("metrics"),
        lambda raw: raw.update(surprise=1),
        lambda raw: raw["metrics"]["mode2_success"].update(value=2.0),
        lambda raw: raw["metrics"]["mode2_success"].update(n=0),
        lambda raw: raw["metrics"].update(mode2_success=3),
    ],
)
def test_a_spoilt_file_is_refused_by_name(tmp_path, spoil):
    path = tmp_path / "seed_0.json"
    save(made(), path)
    raw = json.loads(path.read_text())
    spoil(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="is not a results file"):
        load(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="write it again"):
        load(path)


def test_seeds_are_pooled(tmp_path):
    parts = [made(0, 97, 1.0), made(1, 94, 2.0), made(2, 100, 3.0)]
    paths = [tmp_path / f"seed_{part.seeds[0]}.json" for part in parts]
    for part, path in zip(parts, paths, strict=True):
        save(part, path)
    merged = merge(paths, tmp_path / "two_rooms.json")
    assert load(tmp_path / "two_rooms.json") == merged
    low, high = wilson(291, 300)
    assert merged.metrics["mode2_success"] == Figure(0.97, low, high, 300, 291, [0.97, 0.94, 1.0])
    error = merged.metrics["rollout_error_px_16"]
    assert (error.value, error.n, error.by_seed) == (pytest.approx(2.1), 3, pytest.approx([1.1, 2.1, 3.1]))
    assert (merged.seeds, merged.date, merged.cost) == ([0, 1, 2], "2026-01-03", {"train_seconds": 1000.0})
    assert merged.controls["rollout_error_px_16"]["copy_last"].value == pytest.approx(10)
    assert merged.tables["planners"]["cem"]["success"].n == 300
    assert merge(paths[:1], tmp_path / "one.json") == parts[0]


def test_seeds_measured_apart_are_joined_as_if_together(tmp_path, monkeypatch, capsys):
    """Joining [0, 1] with 2 is joining 0, 1 and 2."""
    parts = [made(seed, 90 + 3 * seed, 1.0 + seed) for seed in range(3)]
    files = [tmp_path / f"seed_{seed}.json" for seed in range(3)]
    for part, file in zip(parts, files, strict=True):
        save(part, file)
    together = merge(files, tmp_path / "together.json")
    merge(files[:2], tmp_path / "first.json")
    given = [str(tmp_path / "first.json"), str(files[2]), "--to", str(tmp_path / "apart.json")]
    monkeypatch.setattr("sys.argv", ["results", *given])
    results.main()
    assert load(tmp_path / "apart.json") == together
    assert "seeds [0, 1, 2]" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["results", str(files[0]), str(files[0]), "--to", str(tmp_path / "twice.json")])
    with pytest.raises(SystemExit, match="1"):
        results.main()
    assert "a seed is there twice" in capsys.readouterr().err


def test_seeds_that_do_not_belong_together_are_refused(tmp_path):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]

    def refused(second: Results, words: str) -> None:
        save(made(0), paths[0])
        save(second, paths[1])
        with pytest.raises(ValueError, match=words):
            merge(paths, tmp_path / "merged.json")
        assert not (tmp_path / "merged.json").exists()

    refused(made(0), "twice")
    refused(replace(made(1), protocol={"episodes": 5}), "differ in protocol")
    refused(replace(made(1), floors={}), "random")
    refused(replace(made(1), floors={"random": mean([0.1])}), "proportion")
    with pytest.raises(ValueError, match="no results files"):
        merge([], tmp_path / "merged.json")


def test_the_tables_show_values_targets_controls_and_floors():
    table = tables.main_tables(made())
    assert "| success (`mode2_success`) | 0.97 [0.915, 0.99] | 100 | >= 0.97 (met) |  |" in table
    assert "<= 1.0 (missed) | copy last 10" in table
    assert "| random | 0.01 [" in table
    assert "train seconds | 900" in table
    widths = {line.count("|") for line in table.split("\n\n")[0].splitlines()}
    assert widths == {6}
    further = tables.further_table(made(), "planners")
    assert "| cem | 100 | 0.9 [" in further
    assert "7,680" in further


def test_an_overview_has_a_row_for_each_file_and_tells_what_was_missed(tmp_path):
    save(made(), tmp_path / "two_rooms.json")
    save(replace(made(), targets={}), tmp_path / "without_targets.json")
    assert tables.refresh("<!-- results:all -->\n<!-- /results:all -->", tmp_path).splitlines()[3:-1] == [
        "| `two_rooms` | 1 | `mode2_success` 0.97 | `rollout_error_px_16` 1.3 (<= 1.0) |"
    ]


def test_pages_are_filled_between_their_marks_and_twice_is_once(tmp_path):
    blocks = (
        "<!-- results:two_rooms -->\nold\n<!-- /results:two_rooms -->",
        "<!-- results:two_rooms:planners -->\nold\n<!-- /results:two_rooms:planners -->",
        "<!-- results:none -->\nkept\n<!-- /results:none -->",
    )
    text = "\n".join(("before", *blocks, ""))
    page, folder = tmp_path / "README.md", tmp_path / "results"
    page.write_text(text)
    save(made(), folder / "two_rooms.json")
    tables.main([str(page), "--results", str(folder)])
    filled = page.read_text()
    assert tables.main_tables(made()) in filled
    assert tables.further_table(made(), "planners") in filled
    assert "old" not in filled
    assert filled.startswith("before\n")
    assert "kept" in filled
    tables.main([str(page), "--results", str(folder)])
    assert page.read_text() == filled


def test_a_page_or_a_table_that_is_not_there_is_named_and_nothing_is_changed(tmp_path, capsys):
    with pytest.raises(SystemExit):
        tables.main([str(tmp_path / "no.md")])
    assert "no.md does not exist" in capsys.readouterr().err
    save(made(), tmp_path / "two_rooms.json")
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text("<!-- results:two_rooms -->\n<!-- /results:two_rooms -->")
    bad.write_text("<!-- results:two_rooms:paths -->\n<!-- /results:two_rooms:paths -->")
    with pytest.raises(SystemExit):
        tables.main([str(good), str(bad), "--results", str(tmp_path)])
    assert "two_rooms have no table 'paths', only ['planners']: no page was changed" in capsys.readouterr().err
    assert good.read_text() == "<!-- results:two_rooms -->\n<!-- /results:two_rooms -->"


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_the_repositorys_pages_are_up_to_date(page):
    text = page.read_text(encoding="utf-8")
    assert tables.refresh(text, ROOT / "results") == text, "run: python -m lightning_jepa.evaluation.tables"


def test_provenance_says_where_a_number_comes_from(tmp_path, monkeypatch):
    assert provenance.today()[4] == "-"
    assert "core" in provenance.machine()
    assert provenance.git_sha(tmp_path) == "unknown"
    monkeypatch.setattr(provenance.shutil, "which", lambda _: None)
    assert provenance.git_sha() == "unknown"


def test_numbers_are_short():
    assert [tables.number(v) for v in (0.9712, 12.345, 4_000_000, 0.0, 1.0)] == ["0.971", "12.3", "4,000,000", "0", "1"]
    assert results.mean([1.0]).low == 1.0
