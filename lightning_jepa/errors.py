"""How an entry point ends when the user can mend what went wrong: one message, exit code 1, no traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

P = ParamSpec("P")
R = TypeVar("R")


def one_message(function: Callable[P, R]) -> Callable[P, R]:
    """Turn the errors that a user can mend into one line on stderr and exit code 1.

    Those are `ValueError` (ours say what to do), `OSError` (disks, folders, servers) and errors of the configuration.
    Any other exception is a bug and keeps its traceback. HYDRA_FULL_ERROR=1 keeps the traceback of all.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (ValueError, OSError, OmegaConfBaseException, HydraException) as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            print(f"error: {error}\n(HYDRA_FULL_ERROR=1 shows where it happened)", file=sys.stderr)
            raise SystemExit(1) from None

    return wrapped
