"""Benchmarks: ``python -m experiments.bench <name> [key=value ...]``, with a job's overrides and the benchmark's own.

latency: a method against vanilla, in turn. flops: counted while running, against the count from shapes. row: where a
row's time goes. kv: choosing what a full KV cache keeps, against the whole-matrix form. gpu: all that is measured on a
GPU, at full size. ``python -m experiments.bench <name> --help`` explains one.
"""

from __future__ import annotations

from importlib import import_module

from experiments.job.cli import check_overrides, compose_config
from experiments.job.device import check_device
from experiments.job.errors import BadInput, command
from experiments.job.job import Job, make_job
from experiments.job.names import nearest

BENCHMARKS = {name: f"experiments.benchmarks.{name}" for name in ("latency", "flops", "row", "kv")}
BENCHMARKS["gpu"] = "experiments.benchmarks.gpu.command"


def explain(arguments: list[str]) -> str:
    """What there is, or of a benchmark that the arguments name, what it measures."""
    return import_module(BENCHMARKS[arguments[0]]).__doc__ if arguments[0] in BENCHMARKS else __doc__


@command("bench", explain)
def main(arguments: list[str]) -> int:
    name, given = (arguments or [""])[0], arguments[1:]
    if name not in BENCHMARKS:
        raise BadInput(f"name a benchmark first; {nearest(name, list(BENCHMARKS))}")
    benchmark = import_module(BENCHMARKS[name])  # no other: each needs packages of its own
    own = [argument for argument in given if argument.startswith(tuple(f"{key}=" for key in benchmark.OPTIONS))]
    overrides = [argument for argument in given if argument not in own]
    check_overrides(overrides)
    options = dict(argument.split("=", 1) for argument in own)
    # The one on a GPU makes jobs of its own, of both models.
    benchmark.run(overrides if name == "gpu" else _job(overrides), **options)
    return 0


def _job(overrides: list[str]) -> Job:
    job = make_job(compose_config(overrides))
    check_device(job.device)
    return job
