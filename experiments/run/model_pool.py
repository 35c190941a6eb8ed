"""Functions of a job's model, called here or in worker processes that each keep one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from typing import Any

from experiments.job.job import Job
from experiments.run import environment
from experiments.run.fork_server import start_server
from experiments.run.lifeline import end_when_closed

Call = Callable[[Job, Any, Any], Any]  # of the job, its model and a task; a function of a module, not a closure
Map = Callable[[Call, Iterable[Any]], Iterator[Any]]

_job: Job | None = None  # of this worker process


@contextmanager
def model_pool(job: Job) -> Iterator[Map]:
    """Yields a ``map`` that calls a function with the job, its model and each task, results in the tasks' order.

    The job says how many workers there are. They end with this context, whatever ends it, or with this process.
    """
    environment.prepare(job.threads)
    if job.workers == 1:
        model = job.load_model()
        yield lambda call, tasks: (call(job, model, task) for task in tasks)
        return
    start_server(job.loader)
    theirs, ours = Pipe(duplex=False)
    pool = ProcessPoolExecutor(job.workers, get_context("forkserver"), initializer=_start, initargs=(theirs, job))
    with theirs, ours, pool:
        try:
            yield lambda call, tasks: pool.map(_call, *zip(*((call, task) for task in tasks), strict=True))
        except BaseException:
            ours.close()
            raise


def _start(line: Connection, job: Job) -> None:
    global _job
    end_when_closed(line)
    environment.prepare(job.threads)
    _job = job


def _call(call: Call, task: Any) -> Any:
    return call(_job, _job.load_model(), task)
