"""Run an experiment file: ``python -m experiments.sweep experiment=main_table [key=value ...]``.

``hydra/launcher=<one of conf/hydra/launcher> tasks=<n>`` shares the work out over processes of a launcher.

An experiment lists override sets of run.py; commas in a value multiply it out. Every set runs on every prompt. What it
says under ``models`` takes the place of the rest for one model. Where one takes every method of conf/method
(main_table), ``method=<one>,<another>`` takes those, beside the baseline. Finished records are kept, so a killed sweep
continues. Each set is then a W&B run in a group named after the experiment.
``plan=true`` tells what is missing and about how long it will take, and stops.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from experiments.job.errors import BadInput, RunFailed, TaskFailed, command, complain
from experiments.job.experiment import experiment_of, jobs_of
from experiments.job.job import Job
from experiments.job.paths import check_writable, shown
from experiments.job.units import counted
from experiments.records import new_record, store_of
from experiments.records.collect import finished
from experiments.records.settings import labelled
from experiments.records.timings import commonest_way, timed
from experiments.run import environment
from experiments.run.estimate import estimate, told
from experiments.run.launch import Launcher, launcher_of
from experiments.run.runner import Runner
from experiments.run.workers import run_jobs
from experiments.show.summary import summarise
from experiments.show.tracking import track


class Countdown:
    """Prints every video as it is made, with how many of how many it is and about how long the rest will take.

    Of the time the first round (a prompt of every worker) is left out, which starts up; nothing is said of what is left
    before a second one has told.

    Args:
        total: videos to make, or to measure.
        first_round: of them, how many make the first round.
    """

    def __init__(self, total: int, first_round: int = 1) -> None:
        self.total, self.first_round, self.done, self.started = total, first_round, 0, 0.0

    def __call__(self, text: str) -> None:
        self.done += 1
        left = ""
        if self.done == self.first_round:
            self.started = time.monotonic()
        elif self.done >= 2 * self.first_round:
            video_s = (time.monotonic() - self.started) / (self.done - self.first_round)
            left_s = video_s * max(0, self.total - self.done)
            left = f", {left_s:.0f} s left" if left_s < 100 else f", {left_s / 60:.0f} min left"
        print(f"{self.done} of {self.total}{left}  {text}", flush=True)


def share_out(launcher: Launcher | None, jobs: Sequence[Job], find_jobs: Callable[[], list[Job]]) -> None:
    """Say how much is missing of the jobs and what it will take, and do it, here or in the launcher's tasks, unless
    only this plan is asked for.

    Every task finds the jobs anew, for its own machine, and does what is missing beside all others. Raises what
    ``run_jobs`` does, or the BadInput or TaskFailed of a task.
    """
    if launcher is not None and jobs[0].force:
        raise BadInput("force=true would have every task make every video; give another output_dir=<folder> instead")
    shares = estimate(jobs)
    lacking, untimed = (0, 0) if jobs[0].force else (num_lacking(jobs), num_untimed(jobs))
    to_make = sum(share.num_videos for share in shares)
    total = to_make + lacking + untimed
    more = f", {counted(lacking, 'finished one')} without a metric, measured from the lossless files" if lacking else ""
    more += f", {counted(untimed, 'finished one')} to time in this way" if untimed else ""
    print(f"{counted(to_make, 'video')} to make{more}", flush=True)
    if shares:
        print(told(shares, jobs[0], launcher.num_tasks if launcher else 1), flush=True)
    if jobs[0].plan:
        print("plan=true: nothing was made; the same command without it does the work")
    elif launcher is None:
        if shares and (busy := environment.told_busy()):
            print(busy, flush=True)
        prompts = tuple(dict.fromkeys(jobs[0].prompts))
        first_round = math.ceil(total * min(jobs[0].workers, len(prompts)) / len(prompts))
        run_jobs(jobs, prompts, Countdown(total, first_round))
    elif total:
        tasks = counted(launcher.num_tasks, "task")
        print(f"{tasks} by {launcher.name}; python -m experiments.records list tells what is made")
        launcher.run(partial(_drain, find_jobs))


def _drain(find_jobs: Callable[[], list[Job]]) -> None:
    jobs = find_jobs()
    run_jobs(jobs, tuple(dict.fromkeys(jobs[0].prompts)), partial(print, flush=True))


def find_jobs(arguments: list[str]) -> list[Job]:
    """The jobs that a command's arguments name, each with a label that tells it from the others."""
    return labelled(jobs_of(*experiment_of(arguments))[0])


def num_lacking(jobs: Sequence[Job]) -> int:
    """Finished videos that lack a metric of their job, each counted once."""
    return len({record.key for job in jobs for record in finished(job) if Runner(job).lacking(record)})


def num_untimed(jobs: Sequence[Job]) -> int:
    """Finished videos that were not timed as their job asks, each counted once."""
    return len({record.key for job in jobs for record in finished(job) if Runner(job).lacks_time(record)})


def finished_at(jobs: Sequence[Job]) -> dict[str, str | None]:
    """When every finished video of the jobs was, by its record's key."""
    return {record.key: record.changed for job in jobs for record in finished(job)}


def told_by_setting(jobs: Sequence[Job], before: Mapping[str, str | None]) -> Iterator[str]:
    """A line a setting, of records: how many videos were made since ``before``, which ``finished_at`` gave, how many
    failed and are there; median seconds, of the way that most were timed in, which is named unless it is this run's;
    and the mean compute left."""
    for job in jobs:
        records = finished(job)
        made = sum(record.changed != before.get(record.key) for record in records)
        line = f"{job.label}: {made} made, {_num_failed(job)} failed, {len(records)} finished in all"
        here, way = environment.way(job), commonest_way(records)
        latencies_s = [timed(record, way).latency_s for record in records]
        latencies_s = [latency_s for latency_s in latencies_s if latency_s is not None]
        if latencies_s:
            line += f"; median {statistics.median(latencies_s):.3g} s" + (f" ({way})" if way != here else "")
        share = summarise(records).get("flops_share") if records else None
        yield line if share is None else f"{line}; compute left {share:.3f}"


def _num_failed(job: Job) -> int:
    keys = {new_record(job, job.method_name, job.method, prompt).key for prompt in job.prompts}
    records = map(store_of(job).read, keys)
    return sum(record is not None and record.status == "failed" for record in records)


@command("sweep")
def main(arguments: list[str]) -> int:
    launcher, arguments = launcher_of(arguments)
    jobs = find_jobs(arguments)
    check_writable(jobs[0].output_dir)
    given, prompts = len(jobs[0].prompts), len(set(jobs[0].prompts))
    repeated = f" (of {given}, with repetitions)" if given > prompts else ""
    print(f"{counted(len(jobs), 'setting')} x {counted(prompts, 'prompt')}{repeated}, ", end="")
    code, before = 0, finished_at(jobs)
    try:
        share_out(launcher, jobs, partial(find_jobs, arguments))
    except (RunFailed, TaskFailed) as error:  # what could be made is there, and is tracked
        code = complain("sweep", error)
    if jobs[0].plan:
        return code
    for job in jobs:
        track(job, finished(job), group=experiment_of(arguments)[0])
    print(*told_by_setting(jobs, before), sep="\n")
    print(f"records are in {shown(jobs[0].output_dir / 'runs')}")
    return code
