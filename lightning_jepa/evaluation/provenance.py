"""Where a number comes from: the day, the commit and the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path


def today() -> str:
    """The date in UTC, as 2026-01-31."""
    return datetime.now(UTC).date().isoformat()


def git_sha(folder: Path | None = None) -> str:
    """Commit of the code, with "+changes" where files differ from it; "unknown" outside a git checkout."""
    git = shutil.which("git")
    folder = folder or Path(__file__).parent
    if git is None:
        return "unknown"

    def ask(*words: str) -> str | None:
        answer = subprocess.run([git, "-C", str(folder), *words], capture_output=True, text=True, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else None

    sha = ask("rev-parse", "--short=12", "HEAD")
    if sha is None:
        return "unknown"
    # Untracked files and result files are left out: writing a result must not make its own commit look changed.
    changed = ask("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)results")
    return f"{sha}+changes" if changed else sha


def machine() -> str:
    """For example "2 cores, 24 GiB": the cores this process may use, and the memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = f"{cores} {'core' if cores == 1 else 'cores'}"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        text += f", {memory:.0f} GiB"
    return text
