"""What skipping gains in time, beside what it saves in compute: every method of conf/experiment/efficiency.yaml.

``python -m experiments.bench efficiency [efficiency_repeats=6] [publish=true] [model=magi] [key=value ...]``

On the job's first prompt. Of each size of frames the baseline and its methods take turns, after a short video each that
is not timed, with the matrix products of each video by themselves (``bench products``). Efficiency is the speed-up as a
share of what the FLOPs would allow, without text and decoding, which no method shortens: 1 where every FLOP that is
saved is time saved. The table goes to output_dir/tables/ (``publish=true``: into results/).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pandas as pd

from eval.latency import Spread, Take
from eval.speedup import speedup
from experiments.benchmarks.latency import rest_s
from experiments.benchmarks.options import whole_number
from experiments.benchmarks.products import noted, seconds
from experiments.job.experiment import jobs_of
from experiments.job.job import Job
from experiments.job.units import counted
from experiments.records import weights_id
from experiments.records.load import is_busy
from experiments.records.settings import labelled
from experiments.run import environment
from experiments.run.runner import Runner
from experiments.show.results import Column, Table, destination, made_by, publishing

OPTIONS = ("efficiency_repeats", "publish")
_MIB = 2**20
_INTERVAL = "{%s_low:.2f} to {%s_high:.2f}"
_RATIOS = {  # of seconds, by key of the table
    "speedup": "speed-up",
    "rest_speedup": "without text and decoding",
    "rest_efficiency": "efficiency",
    "products_efficiency": "of products alone",
}


def run(overrides: list[str], efficiency_repeats: str = "6", publish: str = "false") -> None:
    """Print a line a method, and save the table."""
    repeats = whole_number("efficiency_repeats", efficiency_repeats)
    published, _ = publishing([f"publish={publish}"])
    jobs = jobs_of("efficiency", overrides)[0]
    rows: list[dict[str, Any]] = []
    for _, group in groupby(sorted(jobs, key=_size), _size):
        rows += compared(labelled(list(group)), repeats)
    first = jobs[0]
    to = destination(first.output_dir, published)
    to.save_table(f"{first.model_name}_{first.setting_name}_efficiency", table(pd.DataFrame(rows), first, repeats))


def _size(job: Job) -> tuple[int, int]:
    options = job.generation_options
    return options["height"], options["width"]


def compared(jobs: Sequence[Job], repeats: int) -> list[dict[str, Any]]:
    """A row a job of one size of frames, the baseline's first: its figures over pairs with the baseline."""
    prompt = jobs[0].prompts[0]
    runners = {job.label: Runner(job) for job in sorted(jobs, key=lambda job: not job.is_baseline)}
    for runner in runners.values():
        runner.check(prompt)
    products = {label: noted(runner, runner.job.method, prompt)[0] for label, runner in runners.items()}
    takes: dict[str, list[Take]] = {label: [] for label in runners}
    alone: dict[str, list[float]] = {label: [] for label in runners}
    for _ in range(repeats):
        for label, runner in runners.items():
            takes[label].append(runner.take(runner.job.method, prompt))
            alone[label].append(seconds(runner.job, products[label].run))
    base = next(iter(runners))
    rows = []
    for label, runner in runners.items():
        row = {"method": label, "frames": "{} x {}".format(*_size(runner.job)), "n": repeats, **_own(takes[label])}
        left = [row["flops"] / takes[base][0].trace.flops] * repeats
        row["flops_share"] = left[0]
        if label != base:
            whole = speedup([t.latency_s for t in takes[label]], [t.latency_s for t in takes[base]], left)
            rest = speedup(rest_s(takes[label]), rest_s(takes[base]), left)
            most = speedup(alone[label], alone[base], left)
            ratios = {
                "speedup": (whole.median, whole.low, whole.high),
                "rest_speedup": (rest.median, rest.low, rest.high),
                "rest_efficiency": rest.efficiency,
                "products_efficiency": most.efficiency,
            }
            for key, ends in ratios.items():
                row[key], row[f"{key}_low"], row[f"{key}_high"] = ends
        rows.append(row)
        told = [f"{name} {row[key]:.3f}" for key, name in _RATIOS.items() if key in row]
        first = f"{row['frames']}, {label}: {row['latency_s']:.2f} s at {left[0]:.3f} of the FLOPs"
        print("; ".join([first, ", ".join(told)]) if told else first)
    return rows


def _own(takes: Sequence[Take]) -> dict[str, Any]:
    """What a method takes by itself."""
    trace, rest = takes[0].trace, Spread.of(rest_s(takes)).median
    latency = Spread.of([take.latency_s for take in takes])
    policy = Spread.of([take.sections_s.get("policy", 0.0) for take in takes]).median
    return {
        "flops": trace.flops,
        "latency_s": latency.median,
        "latency_s_low": latency.low,
        "latency_s_high": latency.high,
        "rest_s": rest,
        "policy_share": policy / rest,
        "forecast_mib": trace.forecast_bytes_peak / _MIB,
        "kv_mib": trace.kv_bytes_used_peak / _MIB,
    }


def table(rows: pd.DataFrame, job: Job, repeats: int) -> Table:
    """Of what ``compared`` gives of every size."""
    machine = environment.describe(job.device)
    load = f"load average before timing {machine['load_average_1min']}"
    source = (
        f"{job.model_name}, {job.setting_name} setting, {job.num_frames} frames; {machine.get('gpu', machine['cpu'])}; "
        f"{counted(machine['threads'], 'thread')}; "
        + (f"{load}, above the machine's cores: times are too long" if is_busy(machine) else load)
        + f"; torch {machine['packages']['torch']}; seed {job.seed}; {made_by()}; weights {weights_id(job)}"
    )
    ratios = [Column(name, key, "{:.2f}", _INTERVAL % (key, key)) for key, name in _RATIOS.items()]
    return Table(
        "What skipping gains in time.",
        f"Measured here ({source}). One prompt, n = {repeats} generations of each in turn: medians, seconds with the "
        "fastest and the slowest, ratios with their 95 % bootstrap interval over pairs. Efficiency is the speed-up "
        "without text and decoding times the compute left: 1 where every FLOP that is saved is time saved. Of products "
        "alone: the same of the video's matrix products and attentions, run again in order with nothing between them, "
        "which skipping makes smaller; no method here can have more. Deciding: the policy's share of that time.",
        (
            Column("method", "method"),
            Column("frames", "frames"),
            Column("compute left", "flops_share", "{:.3f}"),
            Column("latency s", "latency_s", "{:.2f}", "{latency_s_low:.2f} to {latency_s_high:.2f}"),
            *ratios,
            Column("deciding", "policy_share", "{:.2%}"),
            Column("forecast MiB", "forecast_mib", "{:.2f}"),
            Column("KV cache MiB", "kv_mib", "{:.2f}"),
        ),
        rows,
    )
