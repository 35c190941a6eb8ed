"""Everything that was measured on a device as one file, to bring back from it and to go on from."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from eval.atomic import atomic_path
from experiments.job.errors import BadInput

MEASURED = re.compile(r"[a-g]_\w+\.json")


def pack(folder: Path, path: Path) -> None:
    """Write a zip file of a device's folder, whole or not at all."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            if file.is_file() and not file.name.startswith("."):
                archive.write(file, file.name)


def unpack(path: Path, folder: Path) -> None:
    """Put the cases of an archive into a folder, where they are not there already. Raises BadInput for no archive."""
    if not zipfile.is_zipfile(path):
        raise BadInput(f"archive={path} is there and is no zip file of measured cases; name a new file, or one of them")
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if MEASURED.fullmatch(name) and not (folder / name).exists():
                with atomic_path(folder / name) as temporary:
                    temporary.write_bytes(archive.read(name))
