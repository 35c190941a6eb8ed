"""Where this checkout is, and what paths that a user gives count from."""

from __future__ import annotations

import os
from pathlib import Path

from experiments.job.errors import BadInput

ROOT = Path(__file__).parents[2]


def inside_root(path: str) -> Path:
    """Relative paths count from the repository, so that a job does not depend on where it is started."""
    path = str(path)
    return Path(path) if os.path.isabs(path) or os.path.exists(path) else ROOT / path


def check_writable(directory: Path) -> None:
    """Refuse a folder for results that is something else, or that this user cannot make or write. Raises BadInput."""
    there = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not there.is_dir():
        raise BadInput(f"output_dir={directory}: {there} is a file; give output_dir=<folder>, which is made if needed")
    if not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(
            f"output_dir={directory}: {there} cannot be written; give output_dir=<folder that you can write>"
        )
