"""The entry points: each stage runs alone, the pipeline joins them, and whoever errs gets one message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TEST_CONF, Compose
from hydra.core.global_hydra import GlobalHydra
from mlflow.tracking import MlflowClient

from lightning_jepa import checkpoint, evaluate, pipeline, train
from lightning_jepa.callbacks.progress import PlainProgress, progress_bar
from lightning_jepa.distributed import is_main, require_one_process
from lightning_jepa.errors import one_message

REPOSITORY = Path(__file__).parent.parent
TINY = [f"hydra.searchpath=[file://{TEST_CONF}]", "experiment=tiny", "tracking=none"]
MAINS = {"train": train.main, "evaluate": evaluate.main, "pipeline": pipeline.main}


def collected(tiny: Compose) -> None:
    pipeline.pipeline(tiny("stages=[collect]"))


def test_train_writes_what_evaluate_reads(tiny: Compose, own_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collected(tiny)
    done = train.train(tiny())
    assert done["checkpoint"] == str(own_root / "run" / checkpoint.LAST)
    assert done["step"] == 8
    assert {"train/energy", "val/energy"} <= done.keys()
    assert sorted(path.name for path in (own_root / "run" / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert checkpoint.read(done["checkpoint"])["config"]["name"] == "tiny"
    assert "TinyStage: step 8 of 8 (100%)" in capsys.readouterr().out

    path = evaluate.evaluate(tiny(f"checkpoint={done['checkpoint']}"))
    cost = json.loads(path.read_text())["cost"]
    assert path == own_root / "run" / "seed_0.json"
    assert cost["train_frames"] == 8 * 4 * 2
    assert cost["train_seconds"] > 0


def test_resume_and_init_from(tiny: Compose) -> None:
    collected(tiny)
    first = train.train(tiny("trainer.max_epochs=1"))
    whole = train.train(tiny("trainer.max_epochs=3"))
    weights = checkpoint.read(whole["checkpoint"])["state_dict"]
    again = train.train(tiny("trainer.max_epochs=1"))  # the same seed, from the start
    assert again["step"] == first["step"] == 4
    resumed = train.train(tiny("trainer.max_epochs=3", "resume=auto"))
    assert resumed["step"] == 12
    other = checkpoint.read(resumed["checkpoint"])["state_dict"]
    assert all(torch.equal(weights[name], other[name]) for name in weights)
    started = train.train(tiny("trainer.max_epochs=1", f"init_from={resumed['checkpoint']}"))
    assert started["step"] == 4
    assert started["val/energy"] < first["val/energy"]


def test_a_checkpoint_of_another_architecture_starts_nothing(tiny: Compose, own_root: Path) -> None:
    collected(tiny)
    done = train.train(tiny())
    with pytest.raises(ValueError, match=r"another architecture: map\.weight has shape"):
        train.train(tiny("stage.size=5", f"resume={done['checkpoint']}", f"paths.out={own_root}/second"))
    assert not (own_root / "second").exists()


def test_the_pipeline_is_a_family_of_runs(tiny: Compose, own_root: Path, store: str) -> None:
    written = pipeline.pipeline(tiny("tracking=mlflow", "seeds=[0,1]"))
    assert written == own_root / "results" / "tiny.json"
    found = json.loads(written.read_text())
    assert found["seeds"] == [0, 1]
    assert found["metrics"]["mode2_success"]["value"] == pytest.approx(17 / 20)

    client = MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert set(children) == {"collect_seed_0", *(f"{s}_seed_{n}" for s in ("pretrain", "evaluate") for n in (0, 1))}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert parent.data.metrics["exam/mode2_success"] == pytest.approx(17 / 20)
    assert [file.path for file in client.list_artifacts(parent.info.run_id, "results")] == ["results/tiny.json"]

    pretrain = children["pretrain_seed_1"]
    assert pretrain.data.params["seed"] == "1"
    assert pretrain.data.params["stage"] == "TinyStage"
    assert [item.dataset.digest for item in pretrain.inputs.dataset_inputs] == ["0123456789ab"]
    steps = [point.step for point in client.get_metric_history(pretrain.info.run_id, "train/energy")]
    assert steps == list(range(8))
    files = {file.path for file in client.list_artifacts(pretrain.info.run_id, "checkpoints")}
    assert files == {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    files = {file.path for file in client.list_artifacts(children["evaluate_seed_1"].info.run_id, "exam")}
    assert {"exam/seed_1.json", "exam/figure.txt"} <= files


def test_the_pipeline_resumes_in_the_same_runs(tiny: Compose, store: str) -> None:
    pipeline.pipeline(tiny("tracking=mlflow", "trainer.max_epochs=1"))
    pipeline.pipeline(tiny("tracking=mlflow", "trainer.max_epochs=2", "resume=auto"))
    client = MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["collect_seed_0", "evaluate_seed_0", "pretrain_seed_0", "tiny"]
    pretrain = next(run for run in runs if run.info.run_name == "pretrain_seed_0")
    steps = [point.step for point in client.get_metric_history(pretrain.info.run_id, "train/energy")]
    assert steps == list(range(8))
    assert "trainer.max_epochs" in json.loads(pretrain.data.tags["param_drift"])


def test_a_resumed_pipeline_does_not_repeat_an_exam_of_the_same_training(tiny: Compose, own_root: Path) -> None:
    pipeline.pipeline(tiny("seeds=[0,1]"))
    pictures = [own_root / "run" / f"evaluate_seed_{seed}" / "figure.txt" for seed in (0, 1)]
    for again, retaken in (([], False), (["evaluation.experiment=other"], True), (["trainer.max_epochs=3"], True)):
        for picture in pictures:
            picture.unlink()
        pipeline.pipeline(tiny("seeds=[0,1]", "resume=auto", *again))
        assert [picture.exists() for picture in pictures] == [retaken, retaken]
        for picture in pictures:
            picture.touch()


def test_the_pipeline_starts_at_any_stage(tiny: Compose, own_root: Path) -> None:
    assert pipeline.pipeline(tiny("stages=[collect,pretrain]")) is None
    written = pipeline.pipeline(tiny("stages=[evaluate]"))  # finds the checkpoint in the run's folder
    assert written is not None
    given = own_root / "run" / "pretrain_seed_0" / checkpoint.LAST
    moved = given.rename(own_root / "moved.ckpt")
    pipeline.pipeline(tiny("stages=[evaluate]", f"checkpoint={moved}"))
    with pytest.raises(ValueError, match="there is no checkpoint"):
        pipeline.pipeline(tiny("stages=[evaluate]"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages=[pretrian]"], r"stages=\['pretrian'\]; choose some of"),
        (["stages=[]"], "choose some of"),
        (["resume=a.ckpt"], "here: resume=auto"),
        (["trainer.devices=2"], "the pipeline runs in one process, but trainer.devices=2"),
        (["stages=[pretrain]"], "the folder of episodes .* is missing"),
    ],
)
def test_what_the_pipeline_refuses(tiny: Compose, own_root: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline.pipeline(tiny(*overrides))
    assert not (own_root / "results").exists()


def test_evaluate_asks_for_a_checkpoint(tiny: Compose) -> None:
    with pytest.raises(ValueError, match="give checkpoint=PATH"):
        evaluate.evaluate(tiny())


def test_one_process_means_rank_zero_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_main()
    require_one_process({"devices": 1, "num_nodes": 1}, "this")
    monkeypatch.setattr("lightning_jepa.distributed.is_main", lambda: False)
    with pytest.raises(ValueError, match="this runs in one process"):
        require_one_process({"devices": 1, "num_nodes": 1}, "this")


def command(name: str, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    """The command line, in this process."""
    monkeypatch.setattr(sys, "argv", [name, *overrides])
    GlobalHydra.instance().clear()
    MAINS[name]()


def test_the_three_commands(
    trust_tiny: None, own_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command("pipeline", monkeypatch, *TINY)
    assert f"results: {own_root}/results/tiny.json" in capsys.readouterr().out
    run = next((own_root / "runs" / "tiny").iterdir())
    assert (run / "pretrain_seed_0" / checkpoint.LAST).is_file()
    command("train", monkeypatch, *TINY)
    said = capsys.readouterr().out
    assert "trained 8 steps; next: python -m lightning_jepa.evaluate experiment=tiny checkpoint=" in said
    command("evaluate", monkeypatch, *TINY, f"checkpoint={run / 'pretrain_seed_0' / checkpoint.LAST}")
    assert "results and figures are in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sead=3", "Key 'sead' not in 'Settings'"),
        ("trainer=no_such_trainer", "Could not find 'trainer/no_such_trainer'"),
        ("trainer.max_epoch=3", "Key 'max_epoch' is not in struct"),
        ("seed=three", "Value 'three' of type 'str' could not be converted to Integer"),
        ("paths.root=/dev/null/x", "error: cannot make the output folder /dev/null/x"),
    ],
)
def test_a_wrong_override_is_one_message(override: str, message: str) -> None:
    """In a process of its own: where a tracer runs, as for coverage, Hydra takes it for a debugger and raises."""
    words = [sys.executable, "-m", "lightning_jepa.pipeline", *TINY, override]
    answer = subprocess.run(words, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert answer.returncode == 1
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


def test_help_answers_as_a_command() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "lightning_jepa.pipeline", *TINY, "--help"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    assert "trainer: cpu, ddp, gpu, multi_node" in answer.stdout


@pytest.mark.parametrize("error", [ValueError("give another"), FileNotFoundError("give another")])
def test_a_users_error_is_one_message(error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    @one_message
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit, match="1"):
        fail()
    assert capsys.readouterr().err == "error: give another\n(HYDRA_FULL_ERROR=1 shows where it happened)\n"
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(type(error)):
        fail()


def test_a_bug_keeps_its_traceback() -> None:
    @one_message
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        fail()


def test_progress_is_a_bar_only_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(progress_bar(), PlainProgress)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert not isinstance(progress_bar(), PlainProgress)


def test_a_silenced_bar_says_nothing(tiny: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    bar = PlainProgress(0.0)
    bar.disable()
    assert not bar.enabled
    bar.enable()
    assert bar.enabled


def test_a_bar_tells_how_far_a_preparation_is(capsys: pytest.CaptureFixture[str]) -> None:
    """While graphs are made the steps are slow, and say nothing about those to come."""
    bar, module = PlainProgress(0.0), SimpleNamespace(preparation=("graph", 0, 40))
    loop = SimpleNamespace(
        global_step=0, estimated_stepping_batches=500, progress_bar_metrics={"loss": 0.5}, loggers=[]
    )
    bar.on_train_start(loop, module)  # type: ignore[arg-type]
    for step, preparation in ((1, ("graph", 8, 40)), (2, ("graph", 16, 40)), (3, None), (4, None)):
        loop.global_step, module.preparation = step, preparation
        bar.on_train_batch_end(loop, module, None, None, step)  # type: ignore[arg-type]
    lines = capsys.readouterr().out.splitlines()
    assert ["just begun" in line for line in lines] == [True, False, True, False]
    assert "graph 16 of 40 (40%)" in lines[1]
    assert "graphs/s" in lines[1]
    assert "step 4 of 500 (1%)" in lines[3]
