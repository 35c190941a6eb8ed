"""What a sweep will take, told before it starts: from the seconds of its finished videos, or else vanilla's compute."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from experiments.job.job import Job
from experiments.run.dry_run import vanilla_flops
from experiments.run.runner import Runner
from flowcache.method import VANILLA

# Operations a second where nothing is timed yet. A GPU: about what an A800 does in the paper's Table 1 (FlowCache,
# arXiv 2602.10825), where vanilla MAGI-1's 306 PFLOPs take 2873 s. A CPU: one core on the embedded models (README.md).
ASSUMED_RATES = {"cuda": 1e14, "cpu": 3e10}
TERA, HOUR_S = 1e12, 3600


@dataclass(frozen=True)
class Share:
    """Videos of one method and setting that are still to be made.

    Attributes:
        video_s: seconds of one, as measured on finished ones; of a method that has none, vanilla's, ``at_most``; of
            vanilla, if it has none, what its FLOPs take at the assumed rate.
    """

    method_name: str
    num_videos: int
    video_s: float
    at_most: bool
    assumed: bool


def estimate(jobs: Sequence[Job]) -> list[Share]:
    """Shares of all videos that are not finished, each counted once, in the order of the jobs."""
    missing, latencies_s = defaultdict(dict), defaultdict(list)
    for job in jobs:
        key = repr(job.settings), repr(job.method)
        for prompt, record in zip(job.prompts, Runner(job).records(job.prompts), strict=True):
            if record is None or job.force:
                missing[key][job.seed, prompt] = job
            if record is not None and record.latency_s is not None:
                latencies_s[key].append(record.latency_s)
    shares, assumed_s = [], {}
    for (settings, method), videos in missing.items():
        job = next(iter(videos.values()))
        vanilla, assumed = (settings, repr(VANILLA)), False
        measured = latencies_s[settings, method] or latencies_s[vanilla]
        if not measured:
            if settings not in assumed_s:
                assumed_s[settings] = vanilla_flops(job) / ASSUMED_RATES[_device(job)]
            measured, assumed = [assumed_s[settings]], True
        at_most = not latencies_s[settings, method] and (settings, method) != vanilla
        shares.append(Share(job.method_name, len(videos), statistics.median(measured), at_most, assumed))
    return shares


def told(shares: Sequence[Share], job: Job, num_tasks: int = 1) -> str:
    """The estimate in a line. ``num_tasks`` work side by side, each with the job's workers, on a device of its own."""
    by_name = defaultdict(list)
    for share in shares:
        by_name[share.method_name].append(share)
    hours = _total_s(shares) / HOUR_S / job.workers
    unit = "GPU-hours" if _device(job) == "cuda" else "hours"
    each = ", ".join(
        f"{_num_videos(of_name)} {name} of {_at_most(of_name)}{_rounded(_total_s(of_name) / _num_videos(of_name))} s"
        for name, of_name in by_name.items()
    )
    rate = f"vanilla by its FLOPs at {ASSUMED_RATES[_device(job)] / TERA:g} TFLOP/s"
    basis = [
        "a method with no finished video as vanilla" if _at_most(shares) else "",
        rate if any(share.assumed for share in shares) else "as measured",
    ]
    beside = f", {_rounded(hours / num_tasks)} h on {num_tasks} tasks" if num_tasks > 1 else ""
    return f"estimate: {each}; {_at_most(shares)}{_rounded(hours)} {unit}{beside} ({', '.join(filter(None, basis))})"


def _device(job: Job) -> str:
    return torch.device(job.device).type


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _num_videos(shares: Sequence[Share]) -> int:
    return sum(share.num_videos for share in shares)


def _total_s(shares: Sequence[Share]) -> float:
    return sum(share.num_videos * share.video_s for share in shares)


def _at_most(shares: Sequence[Share]) -> str:
    return "at most " if any(share.at_most for share in shares) else ""
