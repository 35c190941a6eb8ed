"""What a result is made from, as one hash: it is made again where that, or the version of the code, is another."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import import_module
from pathlib import Path

from experiments.committed.listed import SWEEP, Result
from experiments.committed.videos import Videos
from experiments.job.paths import ROOT
from experiments.records import store_of
from experiments.records.code import statements

# Of conf: what says nothing to a command that reads it, for its own experiment's file counts anyway.
_NO_INPUT = ("conf/results.yaml", "conf/experiment", "conf/training")


def inputs_of(result: Result, videos: Videos) -> str:
    """Of its commands and the code that they draw with, its experiments' files, what it reads, and its records."""
    digest = hashlib.sha256(repr(result.commands).encode())
    experiments = {word.partition("=")[2] for words in result.commands for word in words if "experiment=" in word}
    paths = [*(f"conf/experiment/{name}.yaml" for name in sorted(experiments)), *result.reads]
    for path in [path for each in paths for path in files_below(ROOT / each)]:
        digest.update(f"{path.relative_to(ROOT)}\0{_file_hash(path)}\0".encode())
    for room in sorted({_room(words[0]) for words in result.commands if words[0] != SWEEP}):
        digest.update(_code_hash(room).encode())
    for key, job in sorted(videos.keys.items(), key=lambda pair: pair[0]):
        path = store_of(job).record_path(key)
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:16]


def files_below(path: Path) -> list[Path]:
    """The file itself, or all of a folder, in order; none that begins with a dot, or that Python compiled."""
    found = [path] if path.is_file() else path.rglob("*")
    names = ((each, each.relative_to(ROOT).as_posix()) for each in sorted(found) if each.is_file())
    return [
        each
        for each, name in names
        if not each.name.startswith(".") and each.suffix != ".pyc" and (each == path or not name.startswith(_NO_INPUT))
    ]


def _room(command: str) -> Path:
    """Where the code is that a command is: of an experiment's, the room of its module; of another, that module."""
    if "." in command:
        return ROOT.joinpath(*command.split(".")).with_suffix(".py")
    return ROOT.joinpath(*import_module(f"experiments.commands.{command}").MODULE.split(".")[:2])


@cache  # a room has some fifty files
def _code_hash(room: Path) -> str:
    """Of a module, or a folder's, without comments and layout, and of its templates."""
    digest = hashlib.sha256()
    for path in files_below(room):
        if path.suffix == ".py":
            digest.update(statements(path.read_bytes()).encode())
        elif path.suffix != ".ipynb":
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
