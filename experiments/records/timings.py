"""Times by the way they were taken: videos side by side, threads of each, processor. Of two ways they do not compare.

What else a time depends on (device, compiled or not, attention kernel) is part of a video's settings and of its key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from experiments.records.record import Record, Timing


def way_of(environment: Mapping[str, Any]) -> str:
    """Such as "2 workers x 1 thread, AMD EPYC"."""
    counts = " x ".join(_counted(environment.get(f"{what}s"), what) for what in ("worker", "thread"))
    return f"{counts}, {environment.get('gpu') or environment.get('cpu')}"


def ways(record: Record) -> dict[str, Timing]:
    """All times of a record, by the way they were taken; those taken last, of each."""
    if record.latency_s is None:
        return record.timings
    first = Timing(**{field.name: getattr(record, field.name) for field in fields(Timing)})
    return {way_of(record.environment): first, **record.timings}


def commonest_way(records: Iterable[Record]) -> str | None:
    """The way that most of the records were timed beside a baseline, or timed at all; None where none was."""
    pairs, times = Counter(), Counter()
    for record in records:
        for way, timing in ways(record).items():
            times[way] += 1
            pairs[way] += timing.baseline_latency_s is not None
    return max(times, key=lambda way: (pairs[way], times[way], way), default=None)


def timed(record: Record, way: str | None) -> Record:
    """A record with no times but those of one way; without any where it was not timed so."""
    timing = ways(record).get(way)
    if timing is None:
        return replace(
            record,
            latency_s=None,
            baseline_latency_s=None,
            sections_s={},
            chunk_latency_s=[],
            peak_memory_gib=None,
        )
    return replace(record, **{field.name: getattr(timing, field.name) for field in fields(Timing)})


def _counted(number: Any, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
