"""How far a result is: videos that are there, whether its files are of today's code, and what is left to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.committed.inputs import inputs_of
from experiments.committed.ledger import Made
from experiments.committed.listed import Result
from experiments.committed.said import said_by
from experiments.committed.videos import Videos
from experiments.job.units import counted
from experiments.records import SCHEMA_VERSION
from experiments.run.estimate import basis, estimate, pairs_s, total_s


@dataclass(frozen=True)
class State:
    """Of one result.

    Attributes:
        num_finished: of its videos, by today's code.
        why: it is to be made; None where it is up to date.
        left_s: seconds, about; None where nothing is known.
        basis: what they are from.
    """

    result: Result
    videos: Videos
    num_finished: int
    why: str | None
    left_s: float | None = 0.0
    basis: str = ""


def state_of(
    result: Result, videos: Videos, made: Made | None, version: str, root: Path, seen: set[str] | None = None
) -> State:
    """``made`` is what was noted of it; ``seen`` see ``estimate``."""
    why, num_finished = reason(result, videos, made, version, root), len(videos.finished())
    if why is None:
        return State(result, videos, num_finished, None)
    return State(result, videos, num_finished, why, *_left(videos, made, seen))


def reason(result: Result, videos: Videos, made: Made | None, version: str, root: Path) -> str | None:
    """Why a result is to be made; None where it is of this version and of all that there is to make it from."""
    if wrong := wrong_files(result, version, root):
        return wrong
    found = videos.finished()
    if to_make := len(videos.keys) - len(found):
        return f"{counted(to_make, 'video')} to make"
    if to_complete := videos.to_complete(found):
        return f"{counted(to_complete, 'video')} to measure or to time"
    if made is None or made.version != version or made.inputs is None:
        return "from what its files were made is noted nowhere"
    if made.inputs != inputs_of(result, videos):
        return "what it is made from changed"
    return None


def wrong_files(result: Result, version: str, root: Path) -> str | None:
    """What keeps its files from being those of this version; None where nothing does."""
    lacking = [name for name in result.files if not (root / name).is_file()]
    if lacking:
        return f"{lacking[0]} is missing{f', and {len(lacking) - 1} more' if lacking[1:] else ''}"
    for name in result.files:
        said = said_by(root / name)
        if said is not None and said.version != version:
            return f"{name} is of {'no version' if said.version is None else f'version {said.version}'} of the code"
        if said is not None and said.is_mixed:
            return f"{name} is in part of other code"
        if said is not None and said.record_format not in (None, SCHEMA_VERSION):
            return f"{name} is of records of format {said.record_format}, today's is {SCHEMA_VERSION}"
    return None


def _left(videos: Videos, made: Made | None, seen: set[str] | None) -> tuple[float | None, str]:
    """Seconds of what is left and what they are from; videos that another result makes before are not among it."""
    total, told = 0.0, []
    for jobs in videos.jobs:
        shares = estimate(jobs, seen)
        total += (total_s(shares) + pairs_s(jobs)) / jobs[0].workers
        told += [basis(shares, jobs[0])] if shares else []
    if made is not None and made.drawn_s is not None:
        return total + made.drawn_s, "; ".join([*dict.fromkeys(told), "its other commands as last time"])
    if not videos.jobs:
        return None, ""
    return total, "; ".join([*dict.fromkeys(told), "its other commands were never timed"])


def told_state(state: State) -> str:
    """Several lines: how far it is, its commands and its files."""
    result = state.result
    parts = [f"{result.label}: {'up to date' if state.why is None else f'to make: {state.why}'}"]
    if state.videos.keys:
        parts.append(f"{counted(len(state.videos.keys), 'video')}, {state.num_finished:,} finished by today's code")
    if state.why is not None:
        known = state.left_s is not None
        parts.append(f"about {time_text(state.left_s)} ({state.basis})" if known else "it was never timed")
    return "\n    ".join(["; ".join(parts), *map(command_text, result.commands), *_files(result)])


def told_total(states: Sequence[State]) -> str:
    """Of all, with those of which no time is known."""
    left = [state for state in states if state.why is not None]
    unknown = [state.result.label for state in left if state.left_s is None]
    seconds = sum(state.left_s or 0.0 for state in left)
    told = f"{counted(len(states), 'result')}, {len(states) - len(left)} up to date; about {time_text(seconds)} left"
    return f"{told}, without what was never timed: {', '.join(unknown)}" if unknown else told


def command_text(words: Sequence[str]) -> str:
    """As it is typed."""
    package = "" if "." in words[0] else "experiments."
    return f"python -m {package}{' '.join(words)}"


def time_text(seconds: float) -> str:
    """'45 s', '12 min', '3.5 h'."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def _files(result: Result) -> list[str]:
    """Its files, those that differ in their ending on a line."""
    stems: dict[str, list[str]] = {}
    for name in result.files:
        stem, _, ending = name.rpartition(".")
        stems.setdefault(stem, []).append(ending)
    return [f"{stem}.{', .'.join(endings)}" for stem, endings in stems.items()]
