"""Where this checkout is, and what paths that a user gives count from."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from omegaconf import OmegaConf

from experiments.job.errors import BadInput

ROOT = Path(__file__).parents[2]


def inside_root(path: str) -> Path:
    """A path to read: a relative one counts from where the program is started if it is there, else from the repository.

    A leading ~ is the home folder, and a name on the hub (hf://owner/name) what is downloaded under it.
    Raises BadInput where that fails.
    """
    if str(path).startswith("hf://"):
        from experiments.job.errors import BadInput
        from flowcache.models.checkpoint import CheckpointError
        from flowcache.models.hub import on_disk  # imported late: paths need no torch

        try:
            return on_disk(path)
        except CheckpointError as error:
            raise BadInput(str(error)) from error
    path = os.path.expanduser(str(path))
    return Path(path) if os.path.isabs(path) or os.path.exists(path) else ROOT / path


def results_folder(path: str) -> Path:
    """A folder to write: a relative one counts from the repository, so that wherever a program is started it finds what
    another made. A leading ~ is the home folder."""
    return Path(os.path.normpath(ROOT / os.path.expanduser(str(path))))


def shown(path: Path) -> str:
    """A path as short as it can be used from here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def check_writable(directory: Path) -> None:
    """Refuse a folder for results that is something else, or that this user cannot make or write. Raises BadInput."""
    there = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not there.is_dir():
        raise BadInput(f"output_dir={directory}: {there} is a file; give output_dir=<folder>, which is made if needed")
    if not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(
            f"output_dir={directory}: {there} cannot be written; give output_dir=<folder that you can write>"
        )


# For conf/config.yaml, so that what Hydra writes is there too.
OmegaConf.register_new_resolver("from_root", lambda path: str(results_folder(path)), replace=True)


def calibration(folder: str, *names: str) -> str | None:
    """The file of conf/ that was calibrated on a model and setting (and for a forecast), or None."""
    path = ROOT / "conf" / folder / f"{'_'.join(names)}.json"
    return str(path) if path.is_file() else None


# For conf/reuse and conf/kv: what was calibrated on a model and setting, or null.
for _resolver, _folder in (("plan_of", "plans"), ("table_of", "ratios"), ("heads_of", "heads")):
    OmegaConf.register_new_resolver(_resolver, partial(calibration, _folder), replace=True)
