"""Benchmarks: ``python -m experiments.bench <name> [key=value ...]``, with a job's overrides and the benchmark's own.

latency: a method against vanilla, in turn. flops: counted while running, against the count from shapes. row: where a
row's time goes. kv: choosing what a full KV cache keeps, against the whole-matrix form.
"""

from __future__ import annotations

import sys

from eval.flops import FlopsDisagree
from experiments.benchmarks import flops, kv, latency, row
from experiments.cli import check_overrides, compose_config
from experiments.errors import BadInput
from experiments.job import check_device, make_job, nearest

BENCHMARKS = {"latency": latency, "flops": flops, "row": row, "kv": kv}


def main(arguments: list[str]) -> int:
    try:
        name, given = (arguments or [""])[0], arguments[1:]
        if name not in BENCHMARKS:
            raise BadInput(f"name a benchmark first; {nearest(name, list(BENCHMARKS))}")
        benchmark = BENCHMARKS[name]
        own = [argument for argument in given if argument.startswith(tuple(f"{key}=" for key in benchmark.OPTIONS))]
        overrides = [argument for argument in given if argument not in own]
        check_overrides(overrides)
        options = dict(argument.split("=", 1) for argument in own)
        job = make_job(compose_config(overrides))
        check_device(job.device)
        benchmark.run(job, **options)
    except BadInput as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except FlopsDisagree as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
