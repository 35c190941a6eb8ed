"""What results/made.json keeps of every result: by which code, from what, on which machine, and how long it took."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from eval.atomic import atomic_path
from experiments.job.errors import BadInput
from experiments.show.results import PUBLISHED

LEDGER = PUBLISHED / "made.json"


@dataclass(frozen=True)
class Made:
    """One result.

    Attributes:
        version: of the code, see ``code_version``.
        machine: its processor and cores.
        seconds: that all attempts by this version took together.
        drawn_s: of them, what all commands but the sweeps took when they last came to an end; None before they did.
        finished: when it was, UTC; None where it is not yet.
        inputs: hash of what it was made from; None where it is not finished.
    """

    version: str
    machine: str
    seconds: float
    drawn_s: float | None = None
    finished: str | None = None
    inputs: str | None = None


def read_ledger(path: Path) -> dict[str, Made]:
    """By label; empty where there is no file. Raises BadInput for one that cannot be read."""
    if not path.is_file():
        return {}
    try:
        return {label: Made(**told) for label, told in json.loads(path.read_text(encoding="utf-8")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} is damaged ({error}); restore it with git, or remove it") from error


def write_ledger(path: Path, made: dict[str, Made]) -> None:
    """Whole or not at all, in order of label."""
    told = {label: asdict(made[label]) for label in sorted(made)}
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def newest_version(versions: set[str], today: str, made: dict[str, Made]) -> str | None:
    """Of some versions that files say: today's, or else what the ledger finished last; None where that is unknown."""
    if len(versions) == 1 or today in versions:
        return today if today in versions else next(iter(versions))
    known = [each for each in made.values() if each.finished and each.version in versions]
    return max(known, key=lambda each: each.finished or "").version if known else None
