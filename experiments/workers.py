"""The prompts of one or several jobs, run in this process or shared out over worker processes.

A model as small as the embedded ones leaves half of a second core idle, so that two videos side by side on one thread
each take two thirds of the time of one after the other on two threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from experiments.fork_server import start_server
from experiments.job import Job
from experiments.runner import Progress, Runner

_runners: list[Runner] = []  # of this worker process; they keep their model and what is warm from prompt to prompt


def run_jobs(jobs: Sequence[Job], prompts: Sequence[str], progress: Progress = lambda text: None) -> None:
    """Make what is missing of every job on every prompt, all jobs of a prompt by the same worker, in their order.

    ``progress`` is told of each video, by workers when their prompt is done. The first failure is raised, prompts not
    begun are then left alone; finished records stay. The jobs must agree in ``workers`` and ``threads``.
    """
    workers = min(jobs[0].workers, len(prompts))
    if workers <= 1:
        runners = [Runner(job) for job in jobs]
        for prompt in prompts:
            for runner in runners:
                runner.run([prompt], progress)
        return
    start_server()
    with ProcessPoolExecutor(workers, get_context("forkserver"), initializer=_start, initargs=(jobs,)) as pool:
        shares = [pool.submit(_run_prompt, prompt) for prompt in prompts]
        try:
            for share in as_completed(shares):
                for text in share.result():
                    progress(text)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start(jobs: Sequence[Job]) -> None:
    _runners.extend(Runner(job) for job in jobs)


def _run_prompt(prompt: str) -> list[str]:
    told: list[str] = []
    for runner in _runners:
        runner.run([prompt], told.append)
    return told
