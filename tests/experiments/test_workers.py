"""Prompts shared out over worker processes: the same records as in one process, and a failure that is seen."""

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import pytest

from experiments.job.cli import compose_config
from experiments.job.device import default_threads
from experiments.job.job import make_job
from experiments.job.paths import ROOT
from experiments.records import RecordStore
from experiments.run.fork_server import _SHARED_IMPORTS
from experiments.run.workers import run_jobs


def test_two_workers_make_the_records_of_one(small_job, tmp_path):
    jobs = [small_job("method=vanilla"), small_job("reuse.threshold=0.1", "latency_pairs=0")]
    here = [replace(job, output_dir=tmp_path / "here") for job in jobs]
    told = []
    run_jobs([replace(job, workers=2) for job in jobs], jobs[0].prompts, told.append)
    run_jobs(here, jobs[0].prompts)
    shared, alone = (list(RecordStore(job.output_dir).all()) for job in (jobs[0], here[0]))
    assert [record.environment["workers"] for record in shared] == [2] * 4
    assert [(r.key, r.metrics, r.flops, r.caption) for r in shared] == [
        (r.key, r.metrics, r.flops, r.caption) for r in alone
    ]
    assert sorted(told) == sorted(
        f"{method}: {prompt}" for method in ("vanilla", "flowcache_fast") for prompt in jobs[0].prompts
    )


def test_a_workers_failure_is_raised_here(small_job, tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder", encoding="utf-8")
    job = replace(small_job(), workers=2, output_dir=in_the_way)
    with pytest.raises(OSError, match="file"):
        run_jobs([job], job.prompts)


@pytest.mark.parametrize("error", [MemoryError("none left"), RuntimeError("DefaultCPUAllocator: none left")])
def test_nothing_stays_queued_where_the_model_cannot_be_loaded(small_job, monkeypatch, error):
    def refuse(self):
        raise error

    monkeypatch.setattr("experiments.job.job.Job.load_model", refuse)
    job = small_job("method=vanilla")
    with pytest.raises(type(error), match="none left"):
        run_jobs([job], job.prompts)
    assert list(RecordStore(job.output_dir).all()) == []


def test_an_embedded_model_on_the_cpu_takes_one_thread_however_few_its_prompts(monkeypatch):
    monkeypatch.setattr("experiments.job.device.num_cores", lambda: 16)
    for prompts, workers in (("num_prompts=1", 1), ("num_prompts=8", 4)):
        job = make_job(compose_config([prompts, "device=cpu"]))
        assert (job.workers, job.threads) == (workers, 1)
    assert [default_threads(False, "cpu", workers) for workers in (1, 4, 8, 32)] == [4, 4, 2, 1]
    assert default_threads(True, "cuda", 1) == 4


@pytest.mark.parametrize("name", _SHARED_IMPORTS)
def test_what_the_server_imports_is_there(name):
    """It would say nothing of what is not, and every worker then imports for itself."""
    assert find_spec(name) is not None


# As the first in a process that uses workers: what else starts then unblocks signals.
ASKED = """
from multiprocessing import get_context
from signal import SIG_BLOCK, pthread_sigmask
from experiments.run import fork_server
fork_server._SHARED_IMPORTS = ()
fork_server.start_server("json.decoder.JSONDecoder.decode")
with get_context("forkserver").Pool(1) as pool:
    print(pool.apply(pthread_sigmask, (SIG_BLOCK, ())), pthread_sigmask(SIG_BLOCK, ()))
"""


def test_workers_leave_a_terminals_ctrl_c_to_who_started_them():
    """Else one that takes it begins the next video."""
    asked = subprocess.run([sys.executable, "-c", ASKED], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert asked.stdout == "{<Signals.SIGINT: 2>} set()\n"
