"""Where things are: the shipped configuration, the root of a user's files, the folder of a run.

Three questions, three answers: `CONF`, the resolver `${root:}`, the resolver `${run_folder:runs,name,resume}`.
Importing this module registers what conf/config.yaml needs: the resolvers, and the types of its keys.
"""

from __future__ import annotations

import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from hydra.core.config_store import ConfigStore
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from lightning_jepa.errors import one_message
from lightning_jepa.precision import half
from lightning_jepa.settings import Settings

PACKAGE = Path(__file__).resolve().parent
# In a clone the configuration lies beside the package; a wheel carries it inside the package.
CONF = str(next(p for p in (PACKAGE.parent / "conf", PACKAGE / "conf") if (p / "config.yaml").is_file()))


def started() -> str:
    """When this job was started; that is when torchrun was, for all the processes that it starts."""
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    seconds = psutil.Process(os.getppid()).create_time() if launched else time.time()
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d_%H-%M-%S")


STARTED = started()  # once for a process, however often the resolver is asked


def root() -> str:
    """The folder of data, runs and results: JEPA_ROOT if set, else the current one; always absolute."""
    return str(Path(os.environ.get("JEPA_ROOT") or Path.cwd()).expanduser().resolve())


def run_folder(runs: str, name: str, resume: str | None) -> str:
    """The folder of this run, the same on every process of a job.

    A job's own id comes first: all ranks share it, and a requeued SLURM job keeps it. torchrun without --rdzv-id says
    "none" for every job, so that one does not count. `resume=auto` returns to the newest folder of that name in which
    training came as far as a checkpoint, or else to the newest.
    """
    torchelastic = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    job = os.environ.get("SLURM_JOB_ID") or (torchelastic if torchelastic != "none" else None)
    if job:
        return str(Path(runs, name, job))
    earlier = Path(runs, name).glob("????-??-??_??-??-??") if resume == "auto" else ()
    newest = max(earlier, key=lambda folder: (any(folder.rglob("last.ckpt")), folder.name), default=None)
    return str(newest or Path(runs, name, STARTED))


def writable(folder: str | Path) -> Path:
    """Make `folder` if needed and return it.

    Raises:
        ValueError: if it cannot be made or written to.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the output folder {path} ({error.strerror}); {_MEND}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"the output folder {path} is not writable; {_MEND}")
    return path


_MEND = "choose another with paths.root=FOLDER or the environment variable JEPA_ROOT"


class OutputFolder(Callback):
    """Hydra's hook before it makes the run folder: a folder that cannot be written ends with one message."""

    @one_message
    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the folder of a single run."""
        writable(config.hydra.run.dir)

    @one_message
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the folder of a sweep."""
        writable(config.hydra.sweep.dir)


ConfigStore.instance().store(name="settings", node=Settings)
OmegaConf.register_new_resolver("root", root, replace=True)
OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
OmegaConf.register_new_resolver("half", half, replace=True)
