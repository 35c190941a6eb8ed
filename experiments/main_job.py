"""The main job: plan, generate with a progress bar, measure, print, log."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.errors import RunFailed
from experiments.job import make_job
from experiments.records import Record
from experiments.runner import Runner
from experiments.summary import log_to_wandb, print_summary
from experiments.workers import run_jobs


def run_job(config: DictConfig, console: Console | None = None) -> list[Record]:
    """Run one composed configuration and return its records. Raises BadInput before any video is made."""
    console = console or Console()
    job = make_job(config)
    runner = Runner(job)
    plan = runner.plan()
    console.print(
        f"plan: {job.model_name}, {job.setting_name} setting, {job.method_name}: {len(job.prompts)} prompts x seed "
        f"{job.seed}, {job.num_frames} frames each\n"
        f"      {plan.finished} finished already, {len(plan.to_make)} videos to make, "
        f"{len(plan.references_to_make)} vanilla references to make first; results go to {job.output_dir}\n"
        f"      on {job.device}: {job.workers} worker(s), {job.threads} thread(s) each",
        markup=False,
    )
    columns = (
        TextColumn("{task.description}", markup=False),  # prompts may hold brackets
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("generating", total=runner.num_videos(plan))
        run_jobs([job], plan.to_make, lambda text: bar.update(task, advance=1, description=text[:34].ljust(34)))
    records = runner.records(job.prompts)
    print_summary(job, records, runner.store, console)
    try:
        where = log_to_wandb(job, records, runner.store, OmegaConf.to_container(config.wandb, resolve=True))
    except Exception as error:  # whatever W&B's client raises: its server is down, the key is wrong, its folder full
        if config.debug:
            raise
        raise RunFailed(
            f"W&B failed ({type(error).__name__}: {error}), but every video and record is finished and kept; log in "
            "with `wandb login`, or give wandb.mode=offline or disabled, and run the same command again"
        ) from error
    if where:
        console.print(f"W&B ({config.wandb.mode})  {where}", markup=False)
    return records
