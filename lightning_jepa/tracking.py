"""MLflow: one run for each stage, children of the pipeline's run; the store is SQLite unless told otherwise.

Only global rank 0 talks to the store: every client migrates a fresh SQLite database, and two at once break it.
A run's id is kept in its folder (`mlflow_run_id`) and in its checkpoints, so that a resumed stage goes on in its run.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Read by mlflow when it is imported, so before that: its log lines go where all others go.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")

from lightning.pytorch.loggers import Logger, MLFlowLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only
from mlflow.entities import Dataset, DatasetInput, InputTag, Param
from mlflow.tracking import MlflowClient
from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_jepa import checkpoint
from lightning_jepa.build import build, resolved
from lightning_jepa.distributed import is_main
from lightning_jepa.evaluation.provenance import git_sha
from lightning_jepa.paths import writable

MEMO = "mlflow_run_id"
SECONDS_TO_ANSWER = 3.0


class Tracker(MLFlowLogger):
    """Lightning's MLflow logger, for runs that may be resumed with other parameters."""

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log what is new; MLflow never changes a parameter, so what differs is told in the tag `param_drift`."""
        given = {key: str(value)[:500] for key, value in dict(params).items()}
        stored = self.experiment.get_run(self.run_id).data.params
        new = [Param(key, value) for key, value in given.items() if key not in stored]
        for start in range(0, len(new), 100):  # the most that MLflow takes at once
            self.experiment.log_batch(self.run_id, params=new[start : start + 100])
        drift = {key: f"{stored[key]} -> {given[key]}" for key in given if stored.get(key, given[key]) != given[key]}
        if drift:
            self.experiment.set_tag(self.run_id, "param_drift", json.dumps(drift))


def mlflow_logger(
    experiment: str,
    run_name: str,
    tracking_uri: str,
    artifacts: str,
    run_dir: str,
    parent: str | None = None,
    resume: str | None = None,
) -> Logger:
    """An MLflow logger on global rank 0, and one that does nothing elsewhere.

    Args:
        experiment: name of the MLflow experiment.
        run_name: name of a new run.
        tracking_uri: `sqlite:///FILE` or the address of a server.
        artifacts: folder for artifacts of a local store; a server knows its own.
        run_dir: the run's folder, which remembers the run's id.
        parent: id of the run to nest under.
        resume: None starts a new run, `auto` goes on with the one in `run_dir`, a checkpoint's path with that one's.

    Raises:
        ValueError: if the store does not answer.
    """
    if not is_main():
        return DummyLogger()
    check_store(tracking_uri)
    memo = writable(run_dir) / MEMO
    run_id = None
    if resume == "auto":
        run_id = memo.read_text().strip() if memo.is_file() else None
    elif resume is not None:
        run_id = checkpoint.read(resume).get("run_id")
    client, place = MlflowClient(tracking_uri), None if _is_server(tracking_uri) else Path(artifacts).resolve().as_uri()
    if client.get_experiment_by_name(experiment) is None:  # the logger would make it too, with a warning
        client.create_experiment(experiment, place)
    logger = Tracker(
        experiment_name=experiment,
        run_name=run_name,
        tracking_uri=tracking_uri,
        artifact_location=place,
        tags={"mlflow.parentRunId": parent} if parent else None,
        run_id=run_id,
    )
    memo.write_text(str(logger.run_id))
    logger.experiment.update_run(logger.run_id, status="RUNNING")  # a resumed one still says FINISHED or FAILED
    return logger


def check_store(tracking_uri: str) -> None:
    """Ask whether the store is there, at once: MLflow's own client would try for minutes.

    Raises:
        ValueError: if a server does not answer, or the folder of an SQLite file cannot be written.
    """
    mend = "start it (make ui), set MLFLOW_TRACKING_URI to one that runs, or track nothing with tracking=none"
    if tracking_uri.startswith("sqlite:///"):
        writable(Path(tracking_uri.removeprefix("sqlite:///")).parent)
    elif tracking_uri.startswith("file:") or "://" not in tracking_uri:
        raise ValueError(
            f"MLflow no longer keeps runs in plain files ({tracking_uri}); give sqlite:///FILE or a server"
        )
    elif _is_server(tracking_uri):
        try:
            urllib.request.urlopen(tracking_uri.rstrip("/") + "/health", timeout=SECONDS_TO_ANSWER).close()
        except urllib.error.HTTPError as error:
            raise ValueError(
                f"the tracking server {tracking_uri} answers {error.code} {error.reason}; {mend}"
            ) from error
        except OSError as error:
            raise ValueError(f"the tracking server {tracking_uri} does not answer ({error}); {mend}") from error


def parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers worth sorting runs by: plain values of a configuration, flat, each once.

    Takes the unresolved configuration: a value that is an interpolation is another key's, and is told there.
    """
    left_out = ("paths", "tracking", "callbacks", "experiment", "evaluation", "resume")
    return dict(_leaves({key: value for key, value in config.items() if key not in left_out}, ""))


def describe(logger: Any, stage: str, cfg: DictConfig) -> None:
    """Tell a run what it is: parameters, the whole configuration as an artifact, commit and command line as tags."""
    if not isinstance(logger, Tracker):
        return
    logger.log_hyperparams(parameters(plain(cfg, resolve=False)))
    logger.experiment.log_dict(logger.run_id, plain(cfg), "config.yaml")
    tags = {"stage": stage, "git": git_sha(), "mlflow.note.content": shlex.join(sys.argv)}
    tags |= {"slurm_job_id": os.environ["SLURM_JOB_ID"]} if "SLURM_JOB_ID" in os.environ else {}
    for key, value in tags.items():
        logger.experiment.set_tag(logger.run_id, key, value)


@contextmanager
def tracked(cfg: DictConfig, stage: str) -> Iterator[Logger]:
    """The logger of `cfg.tracking`; its run is described, and ends as FINISHED or FAILED like the block under it."""
    plain(cfg)  # what does not fit together leaves no run behind
    logger: Logger = build(cfg.tracking)
    try:
        describe(logger, stage, cfg)
        yield logger
    except BaseException:
        logger.finalize("failed")
        raise
    logger.finalize("success")


def nested(cfg: DictConfig, stage: str, seed: int, parent: str | None, checkpoint: str | None = None) -> DictConfig:
    """The configuration of one stage of a pipeline: its own seed and folder, and its run under the parent's."""
    own = cfg.copy()
    with open_dict(own):
        own.seed, own.checkpoint = seed, checkpoint
        own.paths.out = str(Path(cfg.paths.out, f"{stage}_seed_{seed}"))
        if "parent" in own.tracking:
            own.tracking.update(parent=parent, run_name=f"{stage}_seed_{seed}")
    return own


def log_data(logger: Any, root: str, digests: Mapping[str, str], context: str) -> None:
    """Data lineage: the run read (or wrote) the data set at `root`; a digest for each split names its content."""
    if not isinstance(logger, Tracker):
        return
    where = root if "://" in root or root.startswith("pipe:") else str(Path(root).resolve())
    inputs = []
    for split, digest in digests.items():
        source = json.dumps({"uri": f"{where}/{split}"})
        dataset = Dataset(
            split, digest[:12], source_type="local" if Path(where).is_absolute() else "remote", source=source
        )
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    logger.experiment.log_inputs(logger.run_id, inputs)


def log_files(logger: Any, path: str | Path, artifact_path: str) -> None:
    """Keep a file, or a folder's files (figures, results), with the run."""
    if isinstance(logger, Tracker):
        log = logger.experiment.log_artifacts if Path(path).is_dir() else logger.experiment.log_artifact
        log(logger.run_id, str(path), artifact_path)


def plain(cfg: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """A configuration as plain containers."""
    content = resolved(cfg) if resolve else OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def run_id(logger: Any) -> str | None:
    """The run's id; None where nothing is tracked."""
    return logger.run_id if isinstance(logger, Tracker) else None


def _is_server(tracking_uri: str) -> bool:
    return tracking_uri.startswith(("http://", "https://"))


def _leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "_target_":
                yield prefix, str(value).rpartition(".")[2]
            elif not str(key).startswith("_"):
                yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, (bool, int, float)) or (isinstance(node, str) and "${" not in node):
        yield prefix, node
    elif (
        isinstance(node, (list, tuple)) and node and not any(isinstance(item, (Mapping, list, tuple)) for item in node)
    ):
        yield prefix, list(node)
