"""Whether everything that is committed is of one version of the code, says so, and is on the list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from experiments.committed.ledger import Made, newest_version
from experiments.committed.listed import LIST, Result
from experiments.committed.said import Said, said_by
from experiments.job.units import counted
from experiments.records import SCHEMA_VERSION
from experiments.show.leaderboard import make_page

# Of results/, what no command makes: written by hand, measured on a GPU, or kept by the command itself.
NOT_MADE = (
    "results/README.md",
    "results/made.json",
    "results/reported/",
    "results/gpu/",
    "results/leaderboard/videos/",
)
_TELLING = (".md", ".png", ".svg")  # files that say on which machine and over how many videos


def problems(results: Sequence[Result], made: Mapping[str, Made], today: str, root: Path) -> list[str]:
    """What is wrong with the files of ``root`` that are of some results, a line each; none where nothing is.

    Args:
        results: all that are on the list.
        made: what is noted of them.
        today: the version of today's code.
    """
    said = {name: said_by(root / name) for result in results for name in result.files if (root / name).is_file()}
    versions = {told.version for told in said.values() if told is not None and told.version is not None}
    newest = newest_version(versions, today, made)
    lines = [f"files are of {len(versions)} versions of the code, and which is the newest is noted nowhere"]
    found = lines if versions and newest is None else []
    for result in results:
        here = [name for name in result.files if name in said]
        wrong: dict[str, list[str]] = {}
        if not (result.is_to_come and not here):
            for name in result.files:
                for told in _wrong(name, said.get(name), name in said, result, newest, root):
                    wrong.setdefault(told, []).append(name)
        if result.is_to_come and len(here) == len(result.files):
            wrong[f"is here, and {LIST.name} says that it is to come: move the model to models"] = here
        found += [f"{result.label}: {told}: {', '.join(names)}" for told, names in wrong.items()]
    listed = {name for result in results for name in result.files}
    found += [f"no command of {LIST.name} makes {name}" for name in made_files(root) if name not in listed]
    return found


def made_files(root: Path) -> list[str]:
    """All files of results/ and notebooks that a command makes, from the repository's folder, in order."""
    paths = [*(root / "results").rglob("*"), *(root / "notebooks").glob("*.ipynb")]
    names = (path.relative_to(root).as_posix() for path in sorted(paths) if path.is_file() and path.name[0] != ".")
    return [name for name in names if not name.startswith(NOT_MADE)]


def _wrong(
    name: str, said: Said | None, is_there: bool, result: Result, newest: str | None, root: Path
) -> Iterator[str]:
    """Of one file."""
    path = root / name
    if not is_there:
        yield "missing"
    elif path.suffix == ".html":
        if make_page(path.parent) != path.read_text(encoding="utf-8"):
            yield "not made of today's tables"
    elif said is not None:
        yield from _wrong_code(said, newest, bool(result.sweeps) and path.suffix in (*_TELLING, ".tex"))
        if path.suffix in _TELLING and not result.counted:
            if said.machine is None:
                yield "names no machine"
            if not said.has_n:
                yield "does not say over how many videos (n)"


def _wrong_code(said: Said, newest: str | None, is_of_records: bool) -> Iterator[str]:
    if said.version is None:
        yield "names no version of the code"
        return
    if newest is not None and said.version != newest:
        yield f"of version {said.version}, the newest is {newest}"
    if newest is None:
        yield f"of version {said.version}"
    if said.is_mixed:
        yield "in part of other code"
    if is_of_records and said.record_format != SCHEMA_VERSION:
        told = "no format" if said.record_format is None else f"format {said.record_format}"
        yield f"of records of {told}, today's code reads {SCHEMA_VERSION}"


def told_problems(lines: Sequence[str], results: Sequence[Result]) -> str:
    """In as many lines, with how to go on."""
    if not lines:
        return f"{counted(len(results), 'result')}: every file is there, of one version of the code, and says of what"
    again = "python -m experiments.all makes what is not up to date"
    return "\n".join([*lines, f"{counted(len(lines), 'problem')}; {again}"])
