"""What a sweep will take, told before it starts: from the seconds of its finished videos, or else vanilla's compute."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from experiments.job.job import Job
from experiments.records import Record, new_record
from experiments.records.timings import timed
from experiments.run.dry_run import vanilla_flops
from experiments.run.runner import Runner
from flowcache.method import VANILLA, Method

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


def estimate(jobs: Sequence[Job], seen: set[str] | None = None) -> list[Share]:
    """Shares of all videos that are not finished, each counted once, in the order of the jobs.

    ``seen`` holds keys of videos that were counted before and are left out; those counted here are added to it.
    """
    missing: dict[tuple[str, str], dict[tuple[int, str], Job]] = defaultdict(dict)
    seen, seconds = set() if seen is None else seen, _Seconds()
    for job in jobs:
        runner, kind = Runner(job), _kind(job, job.method)
        for prompt in runner.prompts:
            key = new_record(job, job.method_name, job.method, prompt).key
            record = runner.store.find(key)
            if (record is None or job.force) and key not in seen:
                missing[kind][job.seed, prompt] = job
                seen.add(key)
            if record is not None:
                seconds.add(kind, record, runner.way)
    shares = []
    for kind, videos in missing.items():
        job = next(iter(videos.values()))
        video_s, assumed = seconds.of(job, job.method)
        at_most = not seconds.measured[kind] and kind != _kind(job, VANILLA)
        shares.append(Share(job.method_name, len(videos), video_s, at_most, assumed))
    return shares


def pairs_s(jobs: Sequence[Job]) -> float:
    """Seconds of what ``estimate`` leaves out: the baseline's, made again beside each video that is still to be timed
    in this way, and the second time of a finished one."""
    seconds, to_time = _Seconds(), []
    for job in jobs:
        runner, kind = Runner(job), _kind(job, job.method)
        for place, record in enumerate(runner.records(runner.prompts)):
            if record is not None:
                seconds.add(kind, record, runner.way)
            if place < job.latency_pairs:
                again = record is not None and (job.force or runner.lacks_time(record))
                beside = not job.is_baseline and (record is None or again)
                to_time += [(job, job.method)] * again + [(job, job.baseline_method)] * beside
    return sum(seconds.of(job, method)[0] for job, method in to_time)


class _Seconds:
    """Seconds of a video, by its settings and method.

    Attributes:
        measured: of finished ones, as ``estimate`` was given them.
    """

    def __init__(self) -> None:
        self.measured: dict[tuple[str, str], list[float]] = defaultdict(list)

    def add(self, kind: tuple[str, str], record: Record, way: str) -> None:
        latency_s = timed(record, way).latency_s or record.latency_s  # better of another way than none
        if latency_s is not None:
            self.measured[kind].append(latency_s)

    def of(self, job: Job, method: Method) -> tuple[float, bool]:
        """The median; of a method that has none, vanilla's; and whether that is only by its FLOPs."""
        measured = self.measured[_kind(job, method)] or self.measured[_kind(job, VANILLA)]
        return (statistics.median(measured), False) if measured else (_by_flops_s(job), True)


def _kind(job: Job, method: Method) -> tuple[str, str]:
    return repr(job.settings), repr(method)


_assumed_s: dict[tuple[str, str], float] = {}  # counting a long video takes a minute


def _by_flops_s(job: Job) -> float:
    key = repr(job.settings), _device(job)
    if key not in _assumed_s:
        _assumed_s[key] = vanilla_flops(job) / ASSUMED_RATES[_device(job)]
    return _assumed_s[key]


def told(shares: Sequence[Share], job: Job, num_tasks: int = 1) -> str:
    """The estimate in a line. ``num_tasks`` work side by side, each with the job's workers, on a device of its own."""
    by_name = defaultdict(list)
    for share in shares:
        by_name[share.method_name].append(share)
    hours = total_s(shares) / HOUR_S / job.workers
    unit = "GPU-hours" if _device(job) == "cuda" else "hours"
    each = ", ".join(
        f"{_num_videos(of_name)} {name} of {_at_most(of_name)}{_rounded(total_s(of_name) / _num_videos(of_name))} s"
        for name, of_name in by_name.items()
    )
    beside = f", {_rounded(hours / num_tasks)} h on {num_tasks} tasks" if num_tasks > 1 else ""
    return f"estimate: {each}; {_at_most(shares)}{_rounded(hours)} {unit}{beside} ({basis(shares, job)})"


def basis(shares: Sequence[Share], job: Job) -> str:
    """What an estimate is from."""
    rate = f"vanilla by its FLOPs at {ASSUMED_RATES[_device(job)] / TERA:g} TFLOP/s"
    told = [
        "a method with no finished video as vanilla" if _at_most(shares) else "",
        rate if any(share.assumed for share in shares) else "as measured",
    ]
    return ", ".join(filter(None, told))


def total_s(shares: Sequence[Share]) -> float:
    """Seconds of all, one after another."""
    return sum(share.num_videos * share.video_s for share in shares)


def _device(job: Job) -> str:
    return torch.device(job.device).type


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _num_videos(shares: Sequence[Share]) -> int:
    return sum(share.num_videos for share in shares)


def _at_most(shares: Sequence[Share]) -> str:
    return "at most " if any(share.at_most for share in shares) else ""
