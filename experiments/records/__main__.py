"""What was made, and what not: ``python -m experiments.records list | show <key> | verify | prune``.

- ``list [--state finished] [--method vanilla]``: a line a run; states are queued, running, finished, failed,
  interrupted, damaged.
- ``show <key>``: one record, whole; the beginning of its key will do.
- ``verify``: checks every finished run's files against their checksums.
- ``prune [--other-code] [--yes]``: says what is failed, interrupted, queued or damaged, and what kills left behind;
  with ``--other-code`` also what other code than today's made. ``--yes`` removes it.

Each takes ``--output-dir <folder>`` (outputs). Exit codes: 0 done, 1 something is damaged, 2 bad input.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from rich import print_json
from rich.console import Console
from rich.table import Table

from experiments.job.errors import BadInput, command
from experiments.job.paths import results_folder, shown
from experiments.job.units import counted
from experiments.records import SCHEMA_VERSION, Record, RecordStore, Status, todays_code

OTHER_SCHEMA = "other-schema"


@dataclass(frozen=True)
class Run:
    """A directory of the store: its name, its record (None if there is none that can be read), and its state, which is
    the record's status, or "interrupted" where that says running and nobody is, or "other-schema" for a record of
    another version of this suite, or "damaged"."""

    key: str
    record: Record | None
    state: str


@command("records")
def main(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    store = RecordStore(results_folder(options.output_dir))
    if not store.run_path("").is_dir():
        raise BadInput(f"there are no records under {store.directory}; give --output-dir, or make some with run.py")
    return options.run(store, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.records", description="What was made, and what not.")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--output-dir", default="outputs", help="of the runs (outputs)")
        command.set_defaults(run=run)
        return command

    listing = add("list", _list, "a line a run")
    states = (*get_args(Status), "interrupted", OTHER_SCHEMA, "damaged")
    listing.add_argument("--state", choices=states, help="only those in this state")
    listing.add_argument("--method", help="only this method's")
    add("show", _show, "one record, whole").add_argument("key", help="or the beginning of one")
    add("verify", _verify, "check every finished run's files against their checksums")
    pruning = add("prune", _prune, "remove what is failed, interrupted, queued or damaged, and what kills left behind")
    pruning.add_argument(
        "--other-code",
        action="store_true",
        help="and what other code than today's made, or another version of this suite",
    )
    pruning.add_argument("--yes", action="store_true", help="do it; otherwise it is only said")
    return parser


def runs(store: RecordStore) -> Iterator[Run]:
    """Every run of the store, by key."""
    for key in store.run_keys():
        record = store.read(key)
        if record is None:
            state = "damaged" if store.schema(key) in (None, SCHEMA_VERSION) else OTHER_SCHEMA
        else:
            state = "interrupted" if record.status == "running" else record.status
        if state in ("interrupted", OTHER_SCHEMA, "damaged") and store.is_claimed(key):
            state = "running"
        yield Run(key, record, state)


def _list(store: RecordStore, options: argparse.Namespace) -> int:
    table = Table("key", "state", "model", "setting", "method", "seed", "prompt", "changed (UTC)")
    num_shown, schemas = 0, set()
    for run in runs(store):
        record = run.record
        if run.state == OTHER_SCHEMA:
            schemas.add(store.schema(run.key))
        if options.state not in (None, run.state) or options.method not in (None, record and record.method):
            continue
        num_shown += 1
        if record is None:
            table.add_row(run.key, run.state)
        else:
            what = (record.model, record.setting, record.method, str(record.seed), record.prompt[:48])
            table.add_row(run.key, run.state, *what, (record.changed or "")[:19])
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print(counted(num_shown, "run"))
    if schemas:
        older = ", ".join(map(str, sorted(schemas)))
        console.print(
            f"{OTHER_SCHEMA}: records of schema {older}, by another version of this suite; this one reads schema "
            f"{SCHEMA_VERSION}. They are kept and not used; prune --other-code removes them"
        )
    if foreign := store.foreign():
        console.print(f"no runs, and left alone: {', '.join(foreign)}", markup=False)
    return 0


def _show(store: RecordStore, options: argparse.Namespace) -> int:
    found = [run for run in runs(store) if run.key.startswith(options.key)]
    if len(found) != 1:
        raise BadInput(
            f"{len(found) or 'no'} runs have a key that begins with {options.key!r}; give more of it, as "
            "python -m experiments.records list shows it"
        )
    (run,) = found
    print(f"{run.state}: {shown(store.run_path(run.key))}")
    if run.state == OTHER_SCHEMA:
        print_json(store.record_path(run.key).read_text(encoding="utf-8"))
    elif run.record is not None:
        print_json(data=asdict(run.record))
    return 1 if run.state == "damaged" else 0


def _verify(store: RecordStore, options: argparse.Namespace) -> int:
    finished, wrong = 0, 0
    for run in runs(store):
        if run.state == "finished":
            finished += 1
            problems = store.damage(run.record)
        else:
            problems = ["its record cannot be read"] if run.state == "damaged" else []
        for problem in problems:
            print(f"{run.key}: {problem}")
        wrong += bool(problems)
    print(
        f"{counted(finished, 'finished run')}, {wrong} damaged"
        + ("; prune removes those, run again to remake them" * bool(wrong))
    )
    return 1 if wrong else 0


def _prune(store: RecordStore, options: argparse.Namespace) -> int:
    doomed: list[tuple[Path, str]] = []
    for run in runs(store):
        path, record = store.run_path(run.key), run.record
        if run.state == "running":
            continue
        if run.state == OTHER_SCHEMA:
            if options.other_code:
                doomed.append((path, f"schema {store.schema(run.key)}, today's is {SCHEMA_VERSION}"))
        elif run.state != "finished":
            doomed.append((path, run.state))
        elif store.damage(record):
            doomed.append((path, "damaged"))
        elif options.other_code and record.code != todays_code(record):
            doomed.append((path, f"code {record.code}, today's is {todays_code(record)}"))
        elif (partials := sorted(path.glob(".*.partial"))) and not store.is_claimed(run.key):
            doomed += [(partial, "left by a kill") for partial in partials]
    for path, why in doomed:
        print(f"{path.relative_to(store.directory)}: {why}")
        if options.yes:
            _remove(store, path)
    print(f"{len(doomed)} {'removed' if options.yes else 'to remove; --yes removes them'}")
    return 0


def _remove(store: RecordStore, path: Path) -> None:
    """A run's directory, or what a kill left in one, unless somebody took the run up meanwhile."""
    with store.claim(path.relative_to(store.run_path("")).parts[0], wait=False) as free:
        if free and path.is_dir():
            shutil.rmtree(path)
        elif free:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
