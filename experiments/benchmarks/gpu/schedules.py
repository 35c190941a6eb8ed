"""Compute and given schedules of the benchmark's videos: functions of the configuration alone, so they are a file.

``python -m experiments.benchmarks.gpu.schedules`` counts what the file lacks (all of it takes minutes on a CPU) and
drops what no case asks for; after a change of settings, of published figures or of the accounting, delete the file
first. What it does not hold, as of other settings, is counted when it is asked for.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from eval.atomic import atomic_path
from experiments.job.cli import compose_config
from experiments.job.method import make_method
from experiments.run.dry_run import count
from experiments.studies.paper_flops import published_schedule

FILE = Path(__file__).with_suffix(".json")
# Overrides that say how a video is computed, not what.
_ELSEWHERE = ("device=", "threads=", "attention_backend=", "compile=", "output_dir=")


@dataclass(frozen=True)
class Counted:
    """Of one video.

    Attributes:
        flops: that are executed.
        chunk_steps: that are computed.
        computed: for every row the chunks to compute, of a method that decides by distances: a schedule that leaves
            the published compute. None where the method decides by itself.
    """

    flops: int
    chunk_steps: int
    computed: tuple[tuple[int, ...], ...] | None


def counted(setting: tuple[str, ...], method: str, overrides: tuple[str, ...] = ()) -> Counted:
    """A video by a method; ``setting`` are the overrides of the configuration without those of the method."""
    name = _name(setting, method, overrides)
    if name not in _known():
        _known()[name] = _count(setting, method, overrides)
    return _known()[name]


def entries() -> dict[str, dict[str, Any]]:
    """What the file holds: the fields of Counted, by the overrides of the video."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}


def _name(setting: tuple[str, ...], method: str, overrides: tuple[str, ...]) -> str:
    given = (*setting, f"method={method}", *overrides)
    return " ".join(override for override in given if not override.startswith(_ELSEWHERE))


def _count(setting: tuple[str, ...], name: str, overrides: tuple[str, ...]) -> Counted:
    config = compose_config([*setting, "weights=random", f"method={name}", *overrides])
    method, computed = make_method(config), None
    if method.reuse.looks_at is not None:
        computed = tuple(tuple(chunks) for chunks in published_schedule(config, setting))
    trace = count(config, method, computed).trace
    return Counted(trace.flops, sum(entry.action == "compute" for entry in trace.entries), computed)


@cache
def _known() -> dict[str, Counted]:
    return {name: _read(entry) for name, entry in entries().items()}


def _read(entry: dict[str, Any]) -> Counted:
    computed = entry["computed"]
    rows = None if computed is None else tuple(tuple(row) for row in computed)
    return Counted(entry["flops"], entry["chunk_steps"], rows)


def asked_for() -> dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]]:
    """Every video of the cases, by name: what ``counted`` takes."""
    from experiments.benchmarks.gpu.cases import PAPER, TINY, all_cases  # they import this module

    works = [case.work for sizes in (TINY, PAPER) for case in all_cases("cpu", (), sizes, official="none")]
    videos = [(work.subject.overrides, work.method, work.overrides) for work in works if work.subject is not None]
    return {_name(*video): video for video in videos}


def write() -> None:
    """Bring the file up to what the cases ask for."""
    held, asked = entries(), asked_for()
    kept = {name: held[name] for name in asked if name in held}
    for name, video in asked.items():
        if name not in kept:
            kept[name] = asdict(_count(*video))
            print(name, flush=True)
        with atomic_path(FILE) as temporary:
            lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in kept.items())
            temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    write()
