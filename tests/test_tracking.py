"""MLflow: one run for a stage and its resumes, children under a parent, data lineage, clear errors without a server."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from mlflow.tracking import MlflowClient
from omegaconf import DictConfig, OmegaConf

from lightning_jepa import tracking
from lightning_jepa.callbacks.system_metrics import SystemMetrics
from lightning_jepa.callbacks.upload import UploadCheckpoints


@pytest.fixture
def settings(store: str, own_root: Path) -> dict[str, Any]:
    artifacts, run_dir = str(own_root / "mlartifacts"), str(own_root / "run")
    return {"experiment": "e", "run_name": "r", "tracking_uri": store, "artifacts": artifacts, "run_dir": run_dir}


def config(settings: dict[str, Any], **changes: Any) -> DictConfig:
    node = {"_target_": "lightning_jepa.tracking.mlflow_logger", **settings}
    return OmegaConf.create({"name": "e", "lr": 0.1, "tracking": node, "copy": "${lr}", **changes})


def test_a_run_is_described_and_finished(settings: dict[str, Any]) -> None:
    with tracking.tracked(config(settings), "train") as logger:
        logger.log_metrics({"train/energy": 1.0}, step=3)
        client, run_id = MlflowClient(settings["tracking_uri"]), tracking.run_id(logger)
        assert client.get_run(run_id).info.status == "RUNNING"
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"name": "e", "lr": "0.1"}
    assert run.data.tags["stage"] == "train"
    assert {"git", "mlflow.note.content"} <= run.data.tags.keys()
    assert "lr: 0.1" in Path(client.download_artifacts(run_id, "config.yaml")).read_text()
    assert run.info.artifact_uri.startswith(Path(settings["artifacts"]).as_uri())


def test_a_run_that_raises_has_failed(settings: dict[str, Any]) -> None:
    def fail() -> None:
        with tracking.tracked(config(settings), "train") as logger:
            seen.append(tracking.run_id(logger))
            raise RuntimeError

    seen: list[str | None] = []
    with pytest.raises(RuntimeError):
        fail()
    assert MlflowClient(settings["tracking_uri"]).get_run(seen[0]).info.status == "FAILED"


def test_resume_auto_continues_the_folders_run_and_tells_changed_parameters(settings: dict[str, Any]) -> None:
    with tracking.tracked(config(settings), "train") as first:
        first.log_metrics({"a": 1.0}, step=0)
    with tracking.tracked(config({**settings, "resume": "auto"}, lr=0.2, new=1), "train") as second:
        second.log_metrics({"a": 2.0}, step=1)
        client = MlflowClient(settings["tracking_uri"])
        assert tracking.run_id(second) == tracking.run_id(first)
        assert client.get_run(tracking.run_id(first)).info.status == "RUNNING"
    run = client.get_run(tracking.run_id(first))
    assert run.data.params == {"name": "e", "lr": "0.1", "new": "1"}
    assert json.loads(run.data.tags["param_drift"]) == {"lr": "0.1 -> 0.2"}
    assert [point.step for point in client.get_metric_history(run.info.run_id, "a")] == [0, 1]


def test_without_resume_a_folder_gets_a_new_run(settings: dict[str, Any]) -> None:
    ids = {tracking.run_id(tracking.mlflow_logger(**settings)) for _ in range(2)}
    assert len(ids) == 2
    assert (Path(settings["run_dir"]) / tracking.MEMO).read_text() in ids


def test_resume_from_a_path_continues_the_checkpoints_run(settings: dict[str, Any], tmp_path: Path) -> None:
    first = tracking.mlflow_logger(**settings)
    content = {"config": {}, "state_dict": {}, "run_id": tracking.run_id(first)}
    torch.save(content, tmp_path / "a.ckpt")
    elsewhere = {**settings, "run_dir": str(tmp_path / "other"), "resume": str(tmp_path / "a.ckpt")}
    assert tracking.run_id(tracking.mlflow_logger(**elsewhere)) == tracking.run_id(first)


def test_a_child_names_its_parent(settings: dict[str, Any]) -> None:
    parent = tracking.mlflow_logger(**settings)
    child = tracking.mlflow_logger(**settings, parent=tracking.run_id(parent))
    run = MlflowClient(settings["tracking_uri"]).get_run(tracking.run_id(child))
    assert run.data.tags["mlflow.parentRunId"] == tracking.run_id(parent)


def test_other_ranks_touch_no_store(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "is_main", lambda: False)
    logger = tracking.mlflow_logger(**{**settings, "tracking_uri": "http://127.0.0.1:1"})
    assert isinstance(logger, DummyLogger)
    assert tracking.run_id(logger) is None


@pytest.mark.parametrize(
    ("root", "kind", "uri"),
    [("data", "local", f"{Path.cwd()}/data/val"), ("s3://bucket/data", "remote", "s3://bucket/data/val")],
)
def test_data_lineage_names_place_and_content(settings: dict[str, Any], root: str, kind: str, uri: str) -> None:
    logger = tracking.mlflow_logger(**settings)
    tracking.log_data(logger, root, {"train": "a" * 64, "val": "b" * 64}, "train")
    inputs = MlflowClient(settings["tracking_uri"]).get_run(tracking.run_id(logger)).inputs.dataset_inputs
    found = {item.dataset.name: item.dataset for item in inputs}
    assert {name: dataset.digest for name, dataset in found.items()} == {"train": "a" * 12, "val": "b" * 12}
    assert json.loads(found["val"].source) == {"uri": uri}
    assert found["val"].source_type == kind
    assert {tag.value for item in inputs for tag in item.tags} == {"train"}


def test_files_and_folders_are_kept(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.png").write_bytes(b"a")
    logger = tracking.mlflow_logger(**settings)
    tracking.log_files(logger, tmp_path / "figures", "exam")
    tracking.log_files(logger, tmp_path / "figures" / "a.png", "single")
    client, run_id = MlflowClient(settings["tracking_uri"]), tracking.run_id(logger)
    found = [file.path for folder in ("exam", "single") for file in client.list_artifacts(run_id, folder)]
    assert found == ["exam/a.png", "single/a.png"]


def test_parameters_are_flat_and_told_once() -> None:
    unresolved = {
        "seed": 1,
        "stage": {
            "_target_": "a.b.Stage",
            "net": "${net}",
            "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.1},
        },
        "net": {"_target_": "a.Conv", "sizes": [1, 2], "flag": True, "nothing": None, "levels": [{"length": 2}]},
        "paths": {"root": "x"},
        "tracking": {"parent": "y"},
        "resume": "auto",
    }
    assert tracking.parameters(unresolved) == {
        "seed": 1,
        "stage": "Stage",
        "stage.optimizer": "Adam",
        "stage.optimizer.lr": 0.1,
        "net": "Conv",
        "net.sizes": [1, 2],
        "net.flag": True,
    }


def test_untracked_runs_take_everything_in_silence(tmp_path: Path) -> None:
    node = {"_target_": "lightning.pytorch.loggers.logger.DummyLogger"}
    with tracking.tracked(OmegaConf.create({"tracking": node}), "train") as logger:
        tracking.log_data(logger, str(tmp_path), {}, "train")
        tracking.log_files(logger, tmp_path, "x")
    assert tracking.run_id(logger) is None


def test_a_server_that_is_not_there_is_a_users_error(settings: dict[str, Any]) -> None:
    with socket.socket() as closed:  # bound and never listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(ValueError, match="does not answer .*make ui"):
            tracking.mlflow_logger(**{**settings, "tracking_uri": uri})
    assert not Path(settings["run_dir"], tracking.MEMO).exists()


def test_a_server_that_hangs_is_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "SECONDS_TO_ANSWER", 0.05)
    with socket.socket() as silent:  # takes connections and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ValueError, match="does not answer"):
            tracking.check_store(f"http://127.0.0.1:{silent.getsockname()[1]}")


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answers) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_a_server_is_asked_for_its_health(server: str) -> None:
    tracking.check_store(server)
    tracking.check_store(server + "/")
    with pytest.raises(ValueError, match="answers 404"):
        tracking.check_store(server + "/other")


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns"])
def test_a_file_store_is_a_users_error(uri: str) -> None:
    with pytest.raises(ValueError, match="give sqlite:///FILE or a server"):
        tracking.check_store(uri)


def test_an_sqlite_file_that_cannot_be_made_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot make the output folder"):
        tracking.check_store(f"sqlite:///{tmp_path}/file/mlflow.db")


class TrainerOf:
    """What the callbacks ask of a trainer."""

    is_global_zero = True

    def __init__(self, logger: Any) -> None:
        self.logger = logger


@pytest.mark.parametrize("ending", ["fit_end", "exception"])
def test_system_metrics_reach_the_run(settings: dict[str, Any], ending: str) -> None:
    logger: Any = tracking.mlflow_logger(**settings)
    callback, trainer = SystemMetrics(seconds_between_samples=0.01), TrainerOf(logger)
    callback.on_fit_start(trainer, None)
    assert callback.monitor is not None
    for monitor in callback.monitor.monitors:
        monitor.collect_metrics()
    callback.monitor.publish_metrics({"cpu_utilization_percentage": 1.0})
    if ending == "fit_end":
        callback.on_fit_end(trainer, None)
    else:
        callback.on_exception(trainer, None, RuntimeError())
    assert callback.monitor is None
    metrics = MlflowClient(settings["tracking_uri"]).get_run(tracking.run_id(logger)).data.metrics
    assert any(name.startswith("system/") for name in metrics)


def test_system_metrics_are_quiet_where_nothing_is_tracked() -> None:
    callback = SystemMetrics()
    callback.on_fit_start(TrainerOf(DummyLogger()), None)
    callback.on_fit_end(TrainerOf(DummyLogger()), None)
    assert callback.monitor is None


def test_checkpoints_are_uploaded(settings: dict[str, Any], tmp_path: Path) -> None:
    logger = tracking.mlflow_logger(**settings)
    callback = UploadCheckpoints(str(tmp_path / "checkpoints"))
    callback.on_fit_end(TrainerOf(logger), None)  # nothing there yet
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"x")
    callback.on_fit_end(TrainerOf(logger), None)
    client = MlflowClient(settings["tracking_uri"])
    assert [file.path for file in client.list_artifacts(tracking.run_id(logger), "checkpoints")] == [
        "checkpoints/last.ckpt"
    ]
