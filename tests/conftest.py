"""What all tests share: one thread, a store of their own, and a tiny experiment for the entry points."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from lightning_jepa import build
from lightning_jepa.paths import CONF

torch.set_num_threads(1)
TEST_CONF = Path(__file__).parent / "conf"

Compose = Callable[..., DictConfig]


def configuration(root: Path, run: str, *overrides: str, experiment: str = "two_rooms_tiny") -> DictConfig:
    """A small experiment, whose run folder is ROOT/RUN."""
    settings = [f"hydra.searchpath=[file://{TEST_CONF}]", f"experiment={experiment}", f"paths.root={root}"]
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("config", [*settings, f"paths.out={root}/{run}", *overrides])


@pytest.fixture(autouse=True)
def own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a root of its own, and the environment of no cluster or server."""
    for name in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "MLFLOW_TRACKING_URI", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JEPA_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store with MLflow's tables, which take seconds to make."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(own_root: Path, empty_store: Path) -> str:
    """The tracking URI of a fresh store in the test's root."""
    shutil.copy(empty_store, own_root / "mlflow.db")
    return f"sqlite:///{own_root}/mlflow.db"


@pytest.fixture
def trust_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `build` build the classes of tests/tiny.py."""
    monkeypatch.setattr(build, "TRUSTED", (*build.TRUSTED, "tiny."))


@pytest.fixture
def tiny(own_root: Path, trust_tiny: None) -> Compose:
    """Compose conf/config.yaml with the experiment `tiny`; its run folder is ROOT/run, and nothing is tracked."""

    def composed(*overrides: str) -> DictConfig:
        settings = [f"hydra.searchpath=[file://{TEST_CONF}]", "experiment=tiny", f"paths.out={own_root}/run"]
        with initialize_config_dir(CONF, version_base="1.3"):
            return compose("config", [*settings, "tracking=none", *overrides])

    return composed
