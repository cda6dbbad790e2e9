"""Several settings of one experiment, side by side in one results file."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from lightning_jepa.compare import compare, composed
from lightning_jepa.evaluation.results import Results, compared, load, mean
from lightning_jepa.evaluation.tables import further_table
from lightning_jepa.paths import CONF

KEPT = ("deterministic", "discrete_4")


def overrides(root: Path, *more: str) -> list[str]:
    return [
        "experiment=fork",
        f"paths.root={root}",
        f"paths.out={root}/out",
        "collection.episodes={train: 12, val: 6}",
        "collection.episodes_per_shard=6",
        "data.batch_size=8",
        "data.steps_per_epoch=3",
        "trainer.max_epochs=1",
        "trainer.precision=32-true",
        "trainer.log_every_n_steps=1",
        "evaluation.transitions=30",
        "evaluation.samples=8",
        "evaluation.angles=5",
        *more,
    ]


@pytest.mark.slow
def test_arms_differ_by_their_overrides_and_meet_in_one_table(tmp_path: Path, empty_store: Path) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    with initialize_config_dir(CONF, version_base="1.3"):
        arms = compose("config", overrides(tmp_path)).comparison.arms
        given = overrides(tmp_path, *(f"~comparison.arms.{name}" for name in arms if name not in KEPT))
        cfg = compose("config", given)
        own = {name: composed(cfg, given, name) for name in KEPT}
        written = compare(cfg, given)
    assert "latent" not in own["deterministic"].stage.jepa
    assert own["deterministic"].paths.out == f"{tmp_path}/out/deterministic"
    found = load(written)
    assert written == tmp_path / "results" / "fork.json"
    assert set(found.tables["arms"]) == set(KEPT)
    assert set(found.tables["arms"]["discrete_4"]) == set(cfg.comparison.columns)
    assert found.metrics["auroc_deterministic"].value == pytest.approx(
        found.tables["arms"]["deterministic"]["auroc_true_against_average"].value
    )
    assert {"continuum_deterministic", "continuum_discrete_4"} <= set(found.tables)
    assert "discrete 4" in further_table(found, "arms")
    with Image.open(tmp_path / "out" / "figures" / "continuum.png") as picture:
        assert min(picture.size) > 200


def results(**metrics: float) -> Results:
    rows = {key: mean([value]) for key, value in metrics.items()}
    return Results("x", "2026-01-01", "abc", "here", [0], {}, rows, cost={"train_seconds": 2.0})


def test_the_headline_names_arms_and_what_they_measured(tmp_path: Path) -> None:
    controls = {"best": {"chance": mean([0.5])}, "p": {"chance": mean([0.1])}}
    arms = {"a": replace(results(p=1.0), controls=controls), "b": results(p=2.0, q=3.0)}
    asked = {"best": "b.p", "other": "a.p", "gain": "b.q - a.p"}
    found = compared(arms, asked, ["p", "q"], tmp_path / "x.json")
    assert found.controls == {"best": controls["best"]}  # those of the headline
    assert load(tmp_path / "x.json") == found
    assert (found.metrics["best"].value, found.metrics["other"].value) == (2.0, 1.0)
    assert found.metrics["gain"].value == 2.0
    assert set(found.tables["arms"]["a"]) == {"p"}
    assert found.cost["training_seconds"] == 4.0
    for wrong in ("c.p", "a.q", "a", "a.p - c.p"):
        with pytest.raises(ValueError, match=re.escape(f"comparison.headline.best={wrong}: expected ARM.METRIC")):
            compared(arms, {"best": wrong}, ["p"], tmp_path / "y.json")
    with pytest.raises(ValueError, match="no results to compare"):
        compared({}, {}, [], tmp_path / "y.json")


def test_without_arms_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("config", ["experiment=two_rooms", f"paths.out={tmp_path}"])
        with pytest.raises(ValueError, match=r"two_rooms has nothing to compare.*comparison.arms"):
            compare(cfg, [])
