"""The prompts of one or several jobs, run in this process or shared out over worker processes.

A model as small as the embedded ones leaves half of a second core idle, so that two videos side by side on one thread
each take two thirds of the time of one after the other on two threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection

from experiments.job.errors import Failure, RunFailed
from experiments.job.job import Job
from experiments.run.fork_server import start_server
from experiments.run.lifeline import end_when_closed
from experiments.run.runner import Progress, Runner

_runners: list[Runner] = []  # of this worker process; they keep their model and what is warm from prompt to prompt


def run_jobs(jobs: Sequence[Job], prompts: Sequence[str], progress: Progress = lambda text: None) -> None:
    """Make what is missing of every job on every prompt, videos or metrics of finished ones.

    All jobs of a prompt are done by the same worker, in their order.

    The same call in other processes, on this machine or others that share its file system, shares the work: what one is
    making the others leave alone, and wait for only when nothing else is left. ``progress`` is told of each video, by
    workers when their prompt is done. The jobs must agree in ``workers`` and ``threads``.

    Raises BadInput before any video is made, RunFailed when all that can be made are, and OSError, or what keeps the
    model from being loaded, at once; nothing then stays queued.
    """
    runners = [Runner(job) for job in jobs]
    for runner in runners:
        runner.queue(prompts)
    try:
        failures = _run_all(jobs, runners, prompts, progress)
    except Exception:
        for runner in runners:
            with suppress(OSError):  # what ails the disk is told already
                runner.withdraw(prompts)
        raise
    if failures:
        raise RunFailed(failures)


def _run_all(
    jobs: Sequence[Job], runners: Sequence[Runner], prompts: Sequence[str], progress: Progress
) -> list[Failure]:
    """What failed, after all that can be made is."""
    workers = min(jobs[0].workers, len(prompts))
    if workers > 1:
        return _share_out(jobs, prompts, workers, progress)
    failures: list[Failure] = []
    busy = [prompt for prompt in prompts if _run_prompt(prompt, False, runners, progress, failures)]
    for prompt in busy:
        _run_prompt(prompt, True, runners, progress, failures)
    return failures


def _share_out(jobs: Sequence[Job], prompts: Sequence[str], workers: int, progress: Progress) -> list[Failure]:
    """As ``_run_all``. The workers end with this call, whatever ends it, or this process: at once, so that a video in
    the making is interrupted and none is begun."""
    failures: list[Failure] = []
    start_server(jobs[0].loader)
    theirs, ours = Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, get_context("forkserver"), initializer=_start, initargs=(theirs, jobs))
    with theirs, ours, pool:
        try:
            busy = list(prompts)
            for wait in (False, True):
                shares = {pool.submit(_run_prompt_here, prompt, wait): prompt for prompt in busy}
                busy = []
                for share in as_completed(shares):
                    is_busy, told, failed = share.result()
                    failures += failed
                    for text in told:
                        progress(text)
                    if is_busy:
                        busy.append(shares[share])
        except BaseException:
            ours.close()
            raise
    return failures


def _run_prompt(
    prompt: str, wait: bool, runners: Sequence[Runner], progress: Progress, failures: list[Failure]
) -> bool:
    """Whether another process was making one of the prompt's videos."""
    busy = False
    for runner in runners:
        outcome = runner.drain([prompt], progress, wait)
        failures += outcome.failures
        busy = busy or bool(outcome.busy)
    return busy


def _start(line: Connection, jobs: Sequence[Job]) -> None:
    end_when_closed(line)
    _runners.extend(Runner(job) for job in jobs)


def _run_prompt_here(prompt: str, wait: bool) -> tuple[bool, list[str], list[Failure]]:
    told: list[str] = []
    failures: list[Failure] = []
    return _run_prompt(prompt, wait, _runners, told.append, failures), told, failures
