"""Making results one after another, each by its commands; one that fails keeps no other from being made."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from experiments.committed.inputs import inputs_of
from experiments.committed.ledger import Made, read_ledger, write_ledger
from experiments.committed.listed import SWEEP, Result
from experiments.committed.plan import State, command_text, reason, time_text, wrong_files
from experiments.committed.videos import Videos
from experiments.job.paths import ROOT
from experiments.job.units import counted

Run = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class Outcome:
    """Of one result.

    Attributes:
        seconds: that it took now; None where it was up to date.
        error: what went wrong; None where nothing did.
    """

    result: Result
    seconds: float | None
    error: str | None = None


@dataclass(frozen=True)
class Maker:
    """Makes results and notes of each how long it took.

    Attributes:
        root: the folder that files are in.
        ledger: the file of notes.
        version: of the code.
        machine: that this is.
        run: runs one command, given its words, and returns its exit code.
    """

    root: Path
    ledger: Path
    version: str
    machine: str
    run: Run

    def make(self, states: Sequence[State]) -> list[Outcome]:
        """All that are not up to date as their turn comes, in order."""
        outcomes = []
        for place, planned in enumerate(states, 1):
            result, label = planned.result, planned.result.label
            why = reason(result, planned.videos, self._noted(label), self.version, self.root)
            if why is None:
                print(f"[{place} of {len(states)}] {label}: up to date, skipped", flush=True)
                outcomes.append(Outcome(result, None))
                continue
            print(f"[{place} of {len(states)}] {label}: to make: {why}", flush=True)
            outcomes.append(outcome := self._make(result, planned.videos))
            told = outcome.error or f"made in {time_text(outcome.seconds or 0.0)}"
            print(f"[{place} of {len(states)}] {label}: {told}", flush=True)
        return outcomes

    def _make(self, result: Result, videos: Videos) -> Outcome:
        """One result. What it took is noted however it ends; that it is finished, only if its files are."""
        started, drawn_s, error = time.monotonic(), 0.0, None
        before = self._noted(result.label)
        noted = before if before is not None and before.version == self.version else None
        spent_s = 0.0 if noted is None else noted.seconds
        made = Made(self.version, self.machine, spent_s, None if before is None else before.drawn_s)
        try:
            for words in result.commands:
                print(f"$ {command_text(words)}", flush=True)
                begun = time.monotonic()
                if code := self.run(words):
                    error = f"failed: {command_text(words)} ended with exit code {code}"
                    break
                drawn_s += 0.0 if words[0] == SWEEP else time.monotonic() - begun
            error = error or self._not_made(result)
            if error is None:
                finished = datetime.now(UTC).isoformat(timespec="seconds")
                inputs = inputs_of(result, videos)
                made = replace(made, drawn_s=round(drawn_s, 1), finished=finished, inputs=inputs)
        finally:
            seconds = time.monotonic() - started
            self._note(result.label, replace(made, seconds=round(spent_s + seconds, 1)))
        return Outcome(result, seconds, error)

    def _not_made(self, result: Result) -> str | None:
        """What its commands left undone, though each said that it had done its work."""
        wrong = wrong_files(result, self.version, self.root)
        return None if wrong is None else f"failed: its commands ended well, but {wrong}"

    def _noted(self, label: str) -> Made | None:
        return read_ledger(self.ledger).get(label)

    def _note(self, label: str, made: Made) -> None:
        write_ledger(self.ledger, {**read_ledger(self.ledger), label: made})


def run_command(words: Sequence[str], extra: Sequence[str] = ()) -> int:
    """In a process of its own, with ``extra`` behind an experiment's words; if this one is stopped, so is that one."""
    package = "" if "." in words[0] else "experiments."
    more = () if package == "" else extra
    with subprocess.Popen([sys.executable, "-m", package + words[0], *words[1:], *more], cwd=ROOT) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise


def told_outcomes(outcomes: Sequence[Outcome], again: str) -> str:
    """How long each took, what failed, and how to go on: by ``again``."""
    lines = [f"{time_text(each.seconds):>8}  {each.result.label}" for each in outcomes if each.seconds is not None]
    total = sum(each.seconds or 0.0 for each in outcomes)
    skipped = sum(each.seconds is None for each in outcomes)
    lines.append(f"{time_text(total):>8}  in all; {counted(skipped, 'result')} up to date before")
    failed = [each for each in outcomes if each.error is not None]
    lines += [f"{each.result.label} {each.error}" for each in failed]
    if failed:
        number = f"{len(failed)} of {counted(len(outcomes), 'result')}"
        lines.append(f"{number} failed; what is made is kept, and {again} goes on from it")
    return "\n".join(lines)
