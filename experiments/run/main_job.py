"""The main job: plan, generate with a progress bar, measure, print, log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.job.errors import RanksFailed, RunFailed
from experiments.job.job import Job, make_job
from experiments.job.paths import shown
from experiments.job.units import counted
from experiments.records import Record
from experiments.records.timings import timed, ways
from experiments.run import environment
from experiments.run.ranks import dismiss, follow, meet
from experiments.run.runner import Plan, Runner
from experiments.run.workers import run_jobs
from experiments.show.summary import print_summary
from experiments.show.tracking import track


def run_job(config: DictConfig, console: Console | None = None) -> list[Record]:
    """Run one composed configuration and return its finished records; none where only the plan is asked for.

    Raises BadInput before any video is made, and RunFailed after all that can be made are shown.
    """
    console = console or Console()
    job = make_job(config)
    if not meet(job):
        follow(job)
        return []
    try:
        records = _lead(job, config, console)
    except RanksFailed:
        raise
    except BaseException:
        dismiss(job)
        raise
    dismiss(job)
    return records


def _lead(job: Job, config: DictConfig, console: Console) -> list[Record]:
    """Do all of the job but what other processes do with this one."""
    runner = Runner(job)
    plan = runner.plan()
    console.print(
        f"plan: {job.model_name}, {job.setting_name} setting, {job.method_name}: "
        f"{counted(len(runner.prompts), 'prompt')} x seed {job.seed}, {counted(job.num_frames, 'frame')} each\n"
        f"{_told_repeated(runner)}"
        f"      {plan.finished} finished already, {counted(len(plan.to_make), 'video')} to make, "
        f"{counted(len(plan.references_to_make), 'reference')} to make first; results go to {shown(job.output_dir)}\n"
        f"{_told_lacking(plan)}"
        f"{_told_untimed(plan, runner)}"
        f"      on {job.device}: {counted(job.workers, 'worker')}, {counted(job.threads, 'thread')} each"
        f"{_told_ranks(job)}",
        markup=False,
    )
    if plan.to_make and (busy := environment.told_busy()):
        console.print(f"      {busy}")
    if plan.to_make and (not config.setting.embedded if job.plan is None else job.plan):
        from experiments.run.plan import print_plan  # imported late: a small job does without

        runner.check(plan.to_make[0])
        print_plan(job, config, runner.model, len(plan.to_make), len(plan.references_to_make), console)
        if job.plan:
            from experiments.run.fits import print_fits

            print_fits(job, config, console)
    if job.plan:
        console.print("      plan=true: nothing was made; the same command without it does the work", markup=False)
        return []
    failed = None
    if plan.unfinished:
        try:
            _make(job, plan.unfinished, runner.num_steps(plan), console)
        except RunFailed as error:
            failed = error
    found = [record for record in runner.records(runner.prompts) if record is not None]
    records = [timed(record, runner.way) for record in found]
    if records:
        print_summary(job, records, runner.store, console)
        console.print(_told_otherwise(found, runner.way), end="", markup=False)
    where = track(job, records, say=lambda text: console.print(text, markup=False))
    if where:
        console.print(f"W&B ({job.wandb['mode']})  {shown(Path(where))}", markup=False)
    if failed is not None:
        raise failed
    return records


def _told_ranks(job: Job) -> str:
    return "" if job.parallel == "none" else f"; parallel={job.parallel}: {job.ranks} processes a video"


def _told_lacking(plan: Plan) -> str:
    if not plan.to_measure:
        return ""
    number, names = len(plan.to_measure), ", ".join(plan.lacking)
    if number == 1:
        return f"      1 video is there but lacks {names}: measured from its lossless file\n"
    return f"      {number} videos are there but lack {names}: measured from their lossless files\n"


def _told_untimed(plan: Plan, runner: Runner) -> str:
    if not plan.to_time:
        return ""
    beside = "" if runner.job.is_baseline else f" beside {runner.job.baseline_name}"
    return f"      to time again, as not timed{beside} by {runner.way} yet: {len(plan.to_time)}\n"


def _told_repeated(runner: Runner) -> str:
    given = len(runner.job.prompts)
    if given == len(runner.prompts):
        return ""
    return f"      each prompt counts once; repetitions among the {given} given: {given - len(runner.prompts)}\n"


def _told_otherwise(records: Sequence[Record], way: str) -> str:
    """A line on the records that were timed, but never in this way: no times of theirs are shown."""
    others = [ways(record) for record in records if ways(record) and way not in ways(record)]
    if not others:
        return ""
    named = "; ".join(sorted({name for each in others for name in each}))
    return (
        f"times are those by {way} alone, which leaves out {len(others)} of {len(records)} videos, timed only by "
        f"{named}; a larger latency_pairs times them again\n"
    )


def _make(job: Job, prompts: Sequence[str], num_steps: int, console: Console) -> None:
    """Make or measure the prompts' videos, ``num_steps`` with the references, under a progress bar.

    Raises what run_jobs does.
    """
    columns = (
        TextColumn("{task.description}", markup=False),  # prompts may hold brackets
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("generating", total=num_steps)
        run_jobs([job], prompts, lambda text: bar.update(task, advance=1, description=text[:34].ljust(34)))
