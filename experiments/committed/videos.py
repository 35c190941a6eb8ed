"""The videos that a result is drawn from: those of all settings of its sweeps, and how many are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from experiments.committed.listed import Result
from experiments.job.job import Job
from experiments.records import Record, new_record, store_of
from experiments.records.metrics import current
from experiments.run.runner import Runner
from experiments.run.sweep import find_jobs


@dataclass(frozen=True)
class Videos:
    """Of one result.

    Attributes:
        jobs: the settings of each of its sweeps.
        keys: of every video the setting, by the key that today's code gives it: finding keys takes longer than reading
            records.
    """

    jobs: tuple[tuple[Job, ...], ...] = ()
    keys: Mapping[str, Job] = field(default_factory=dict)

    def finished(self) -> dict[str, Record]:
        """Those that are there now, by key."""
        found = ((key, store_of(job).find(key)) for key, job in self.keys.items())
        return {key: current(record) for key, record in found if record is not None}

    def to_complete(self, finished: Mapping[str, Record]) -> int:
        """How many of those that are there lack a metric, or a time that is asked for."""
        runners: dict[int, Runner] = {}  # of a job for all of its videos
        lacking = 0
        for key, record in finished.items():
            job = self.keys[key]
            runner = runners.setdefault(id(job), Runner(job))
            lacking += bool(runner.lacking(record)) or runner.lacks_time(record)
        return lacking


def videos_of(result: Result, extra: Sequence[str] = ()) -> Videos:
    """``extra`` are options that all sweeps get. Raises what ``find_jobs`` does."""
    jobs = tuple(tuple(find_jobs([*arguments, *extra])) for arguments in result.sweeps)
    keys: dict[str, Job] = {}
    for job in (job for own in jobs for job in own):
        for prompt in job.prompts:
            keys.setdefault(new_record(job, job.method_name, job.method, prompt).key, job)
    return Videos(jobs, keys)
