"""Benchmarks: ``python -m experiments.bench <name> [key=value ...]``, with a job's overrides and the benchmark's own.

latency: a method against vanilla, in turn. flops: counted while running, against the count from shapes. row: where a
row's time goes. products: what skipping could gain at most, by the time that products take alone. efficiency: both, of
several methods, as a table. kv: every KV selector and store, and FlowCache's choice against the whole-matrix form. gpu:
all that is measured on a GPU, at full size. predict: what a run would take on a GPU that is not here.
``python -m experiments.bench <name> --help`` explains one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from experiments.job.errors import BadInput, command
from experiments.job.help import documentation
from experiments.job.names import nearest

if TYPE_CHECKING:  # what needs torch is imported late: no help does
    from experiments.job.job import Job

BENCHMARKS = {name: f"experiments.benchmarks.{name}" for name in ("latency", "flops", "row", "products", "kv")}
BENCHMARKS["gpu"] = "experiments.benchmarks.gpu.command"
BENCHMARKS |= {name: f"experiments.benchmarks.{name}" for name in ("predict", "efficiency")}
WITHOUT_JOB = ("gpu", "predict", "efficiency")  # they make jobs of their own, some on a device that may not be here


def explain(arguments: list[str]) -> str:
    """What there is, or of a benchmark that the arguments name, what it measures."""
    return documentation(BENCHMARKS.get(arguments[0], __name__))


@command("bench", explain)
def main(arguments: list[str]) -> int:
    name, given = (arguments or [""])[0], arguments[1:]
    if name not in BENCHMARKS:
        raise BadInput(f"name a benchmark first; {nearest(name, list(BENCHMARKS))}")
    from experiments.job.cli import check_overrides

    benchmark = import_module(BENCHMARKS[name])  # no other: each needs packages of its own
    own = [argument for argument in given if argument.startswith(tuple(f"{key}=" for key in benchmark.OPTIONS))]
    overrides = [argument for argument in given if argument not in own]
    check_overrides(overrides)
    options = dict(argument.split("=", 1) for argument in own)
    benchmark.run(overrides if name in WITHOUT_JOB else _job(overrides), **options)
    return 0


def _job(overrides: list[str]) -> Job:
    from experiments.job.cli import compose_config
    from experiments.job.device import check_device
    from experiments.job.job import make_job

    job = make_job(compose_config(overrides))
    check_device(job.device)
    return job
