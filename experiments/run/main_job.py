"""The main job: plan, generate with a progress bar, measure, print, log."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.job.errors import RunFailed
from experiments.job.job import Job, make_job
from experiments.records import Record
from experiments.run import environment
from experiments.run.runner import Plan, Runner
from experiments.run.workers import run_jobs
from experiments.show.summary import print_summary
from experiments.show.tracking import track


def run_job(config: DictConfig, console: Console | None = None) -> list[Record]:
    """Run one composed configuration and return its finished records.

    Raises BadInput before any video is made, and RunFailed after all that can be made are shown.
    """
    console = console or Console()
    job = make_job(config)
    runner = Runner(job)
    plan = runner.plan()
    console.print(
        f"plan: {job.model_name}, {job.setting_name} setting, {job.method_name}: {len(job.prompts)} prompts x seed "
        f"{job.seed}, {job.num_frames} frames each\n"
        f"      {plan.finished} finished already, {len(plan.to_make)} videos to make, "
        f"{len(plan.references_to_make)} references to make first; results go to {job.output_dir}\n"
        f"{_told_lacking(plan)}"
        f"      on {job.device}: {job.workers} worker(s), {job.threads} thread(s) each",
        markup=False,
    )
    if plan.to_make and (busy := environment.told_busy()):
        console.print(f"      {busy}")
    if plan.to_make and (not config.setting.embedded if config.plan is None else config.plan):
        from experiments.run.plan import print_plan  # imported late: a small job does without

        runner.check(plan.to_make[0])
        print_plan(job, config, runner.model, len(plan.to_make), len(plan.references_to_make), console)
    failed = None
    if plan.unfinished:
        try:
            _make(job, plan.unfinished, runner.num_steps(plan), console)
        except RunFailed as error:
            failed = error
    records = [record for record in runner.records(job.prompts) if record is not None]
    if records:
        print_summary(job, records, runner.store, console)
    where = track(job, records, say=lambda text: console.print(text, markup=False))
    if where:
        console.print(f"W&B ({job.wandb['mode']})  {where}", markup=False)
    if failed is not None:
        raise failed
    return records


def _told_lacking(plan: Plan) -> str:
    if not plan.to_measure:
        return ""
    names = ", ".join(plan.lacking)
    return f"      {len(plan.to_measure)} videos are there but lack {names}: measured from their lossless files\n"


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
