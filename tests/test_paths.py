"""Where things are: the root, and one run folder for all processes of a job."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lightning_jepa.paths import CONF, STARTED, OutputFolder, root, run_folder, writable


def test_the_configuration_is_found() -> None:
    assert Path(CONF, "config.yaml").is_file()


def test_root_is_the_environments_or_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert root() == str(tmp_path)
    monkeypatch.delenv("JEPA_ROOT")
    monkeypatch.chdir("/")
    assert root() == "/"


def test_a_run_has_its_own_folder_by_time(tmp_path: Path) -> None:
    assert run_folder(str(tmp_path), "a", None) == str(tmp_path / "a" / STARTED)


def test_processes_of_a_job_share_a_folder_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun without --rdzv-id: the same for every job
    assert run_folder("runs", "a", None) == f"runs/a/{STARTED}"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job42")
    assert run_folder("runs", "a", None) == "runs/a/job42"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert run_folder("runs", "a", "auto") == "runs/a/7"


def test_torchruns_start_is_that_of_all_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    code = "import lightning_jepa.paths; print(lightning_jepa.paths.STARTED)"
    one, two = (subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2))
    assert one == two != ""


def test_resume_auto_returns_to_the_newest_folder(tmp_path: Path) -> None:
    assert run_folder(str(tmp_path), "a", "auto") == str(tmp_path / "a" / STARTED)
    for name in ("2024-01-02_00-00-00", "2024-01-01_00-00-00", "sweeps"):
        (tmp_path / "a" / name).mkdir(parents=True)
    assert run_folder(str(tmp_path), "a", "auto") == str(tmp_path / "a" / "2024-01-02_00-00-00")
    last = tmp_path / "a" / "2024-01-01_00-00-00" / "pretrain_seed_0" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()  # the newer one failed before it had anything to go on from
    assert run_folder(str(tmp_path), "a", "auto") == str(tmp_path / "a" / "2024-01-01_00-00-00")
    assert run_folder(str(tmp_path), "a", "some.ckpt") == str(tmp_path / "a" / STARTED)


def test_hydra_asks_for_the_run_folder(tmp_path: Path) -> None:
    with initialize_config_dir(CONF, version_base="1.3"):
        overrides = ["+paths=default", "+hydra=default", "+name=a", "+resume=null"]
        cfg = compose(overrides=overrides, return_hydra_config=True)
    assert cfg.hydra.run.dir == str(tmp_path / "runs" / "a" / STARTED)


def test_a_folder_that_cannot_be_made_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot make the output folder .*JEPA_ROOT"):
        writable(tmp_path / "file" / "runs")
    assert writable(tmp_path / "new" / "runs").is_dir()


def test_a_folder_without_permission_is_a_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere, so the answer is staged
    with pytest.raises(ValueError, match="not writable; choose another"):
        writable(tmp_path)


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_hydras_hook_ends_with_one_message(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    cfg = OmegaConf.create({"hydra": {kind: {"dir": str(tmp_path / "file" / "x")}}})
    hook = OutputFolder().on_run_start if kind == "run" else OutputFolder().on_multirun_start
    with pytest.raises(SystemExit, match="1"):
        hook(cfg)
    assert capsys.readouterr().err.startswith("error: cannot make the output folder")
