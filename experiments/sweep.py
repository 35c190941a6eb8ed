"""Run an experiment file: ``python -m experiments.sweep experiment=main_table [workers=2] [key=value ...]``.

An experiment lists override sets of run.py; commas in a value multiply it out. Prompts are shared out over worker
processes, each of which runs every set on its prompts. Finished records are kept, so a killed sweep continues.
Speed is not measured here: workers disturb each other.
"""

from __future__ import annotations

import itertools
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.cli import check_overrides, compose_config, config_files
from experiments.errors import BadInput
from experiments.job import Job, make_job, nearest
from experiments.runner import Runner

_OWN_KEYS = ("experiment", "workers")


def expand(overrides: list[str]) -> list[list[str]]:
    """['a=1,2', 'b=3'] -> [['a=1', 'b=3'], ['a=2', 'b=3']]."""
    choices = []
    for override in overrides:
        key, _, values = override.partition("=")
        choices.append([f"{key}={value}" for value in values.split(",")])
    return [list(combination) for combination in itertools.product(*choices)]


def jobs_of(name: str, extra: list[str]) -> list[Job]:
    """Every job of an experiment file, vanilla first so that references exist."""
    files = {path.stem: path for path in config_files("experiment")}
    if name not in files:
        raise BadInput(f"unknown experiment {name!r}; {nearest(name, list(files))}")
    experiment = OmegaConf.to_container(OmegaConf.load(files[name]))
    common = [
        f"num_prompts={experiment['num_prompts']}",
        f"metrics=[{','.join(experiment['metrics'])}]",
        f"latency_pairs={experiment['latency_pairs']}",
        *extra,
    ]
    sets = [overrides for listed in experiment["overrides"] for overrides in expand(listed)]
    for overrides in sets:
        check_overrides(overrides + extra)
    jobs = [make_job(compose_config(overrides + common)) for overrides in sets]
    return sorted(jobs, key=lambda job: job.method_name != "vanilla")


def run_share(jobs: list[Job], worker: int, workers: int) -> int:
    """All jobs on every ``workers``-th prompt; the number of videos made."""
    model, made = None, 0
    prompts = jobs[0].prompts[worker::workers]
    for prompt in prompts:
        for job in jobs:
            runner = Runner(replace(job, prompts=(prompt,)), model)
            todo = len(runner.plan().to_make)
            if todo:
                model = runner.model
                runner.run()
                made += todo
        print(f"worker {worker}: {prompts.index(prompt) + 1} of {len(prompts)} prompts", flush=True)
    return made


def main(arguments: list[str]) -> int:
    try:
        own = OmegaConf.from_dotlist([a for a in arguments if a.partition("=")[0] in _OWN_KEYS])
        extra = [a for a in arguments if a.partition("=")[0] not in _OWN_KEYS]
        jobs = jobs_of(own.get("experiment", "main_table"), extra)
        workers = min(own.get("workers", 2), len(jobs[0].prompts))
        jobs = [replace(job, threads=max(1, job.threads // workers)) for job in jobs]
        print(f"{len(jobs)} settings x {len(jobs[0].prompts)} prompts on {workers} workers", flush=True)
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            shares = [pool.submit(run_share, jobs, worker, workers) for worker in range(workers)]
            made = sum(share.result() for share in shares)
    except (BadInput, OmegaConfBaseException) as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 2
    print(f"{made} videos made; records are in {jobs[0].output_dir / 'records'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
