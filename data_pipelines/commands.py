"""What the commands of this package share: a line for errors, and the splits of a data set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from data_pipelines.schema import MANIFEST


def run(command: Callable[[argparse.Namespace], object], parser: argparse.ArgumentParser) -> None:
    """Parse the command line and run the command; what the user can mend ends with one message and exit code 1."""
    given = parser.parse_args()
    try:
        command(given)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def splits(root: Path) -> list[Path]:
    """The folders of a data set that hold a manifest.

    Raises:
        ValueError: if there are none.
    """
    found = sorted(path.parent for path in (root / MANIFEST, *root.glob(f"*/{MANIFEST}")) if path.is_file())
    if not found:
        raise ValueError(f"{root} holds no data set: there is no {MANIFEST} in it nor in the folders below")
    return found
