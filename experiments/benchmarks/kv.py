"""Every KV selector and store, and FlowCache's choice against the whole-matrix form: time, memory, the same choice.

``python -m experiments.bench kv [lengths=4032,16128,48600] [queries=token,frame,chunk] [runs=3]
[show=whole_matrix,selectors,stores,video] [key=value ...]``

One layer of MAGI-1 4.5B: 4 clean chunks of 6 frames, of which the budget holds 3, and the queries of a fifth; 48600
keys are its full size. Keys and queries are seeded noise, float32, and the same for all; nothing is timed the first
time.

whole_matrix: FlowCache's choice against the O(L^2) form by its definitions, runs in turn. Importance needs the product
of all queries and keys on either side, so the more queries, the smaller the gain. selectors: each of conf/kv at its own
options, what it takes to choose, to look where it does so in every row, and what it remembers beside the keys; r_kv
compares all pairs of keys. stores: each of conf/kv/store, what it takes to put a finished chunk in codes and to read 4
chunks, how much longer attention to them is with both, bits a number, and what the cache of all layers takes in
bfloat16. video: the share of time that a whole video of the job spends compressing, with its budget, or else one of two
chunks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import psutil
import torch
from torch import Tensor
from torch.nn import functional as F

from eval.latency import Spread
from eval.peak_memory import PeakBytes
from experiments.benchmarks.kv_layer import (
    CHANNELS,
    CHUNKS,
    FRAMES_PER_CHUNK,
    NUM_GROUPS,
    NUM_HEADS,
    Sizes,
    cell,
    timed,
)
from experiments.benchmarks.kv_parts import selector_lines, store_lines
from experiments.benchmarks.options import whole_number
from experiments.job.errors import BadInput
from experiments.job.job import Job
from experiments.job.names import nearest
from experiments.job.units import counted
from experiments.run import environment
from flowcache.kv.policy import KvPolicy
from flowcache.kv.select.base import Entries, Unit
from flowcache.kv.select.joint import Joint

OPTIONS = ("lengths", "queries", "runs", "show")
GIB = 2**30
BUDGET = "2 chunks"
SHOWN = ("whole_matrix", "selectors", "stores", "video")


def run(
    job: Job,
    lengths: str = "4032,16128,48600",
    queries: str = "token,frame,chunk",
    runs: str = "3",
    show: str = ",".join(SHOWN),
) -> None:
    """Print a line for every length and query granularity, for every selector and store at each length, and one of a
    whole video."""
    of_lengths, granularities, shown = [Sizes(n) for n in _lengths(lengths)], _granularities(queries), _shown(show)
    num_runs = whole_number("runs", runs)
    environment.prepare(job.threads)
    place = torch.cuda.get_device_name() if job.device.startswith("cuda") else counted(job.threads, "CPU thread")
    print(
        f"one layer, {NUM_HEADS} query heads on {NUM_GROUPS} key-value heads of {CHANNELS}, float32, keeping "
        f"{CHUNKS - 1} of {CHUNKS} chunks, on {place}"
    )
    print(f"median (range) of {num_runs} runs, and what tensors take at their peak beyond the inputs")
    if "whole_matrix" in shown:
        print(f"{'keys':>6}  {'queries':>13}  {'linear, blocked':>40}  {'whole matrix':>40}  {'faster':>7}  same kept")
        for sizes in of_lengths:
            for granularity in granularities:
                print(_line(sizes, granularity, num_runs, job.device), flush=True)
    for name, lines in {"selectors": selector_lines, "stores": store_lines}.items():
        for sizes in of_lengths if name in shown else ():
            print(f"{name}, {sizes.length} keys")
            for line in lines(sizes, num_runs, job.device):
                print(line, flush=True)
    if "video" in shown:
        print(_whole_video(job, num_runs))


def whole_matrix(query: Tensor, key: Tensor, budget: int, joint: Joint) -> Tensor:
    """Kept indices [G, K] by the definitions: attention of all queries and cosines of all pairs, each matrix whole.

    Token selection without position weights; query [H, Q, E], key [G, L, E].
    """
    logits = None
    for shared in query.unflatten(0, (len(key), -1)).unbind(1):
        own = shared @ key.mT / math.sqrt(key.shape[-1])
        logits = own if logits is None else torch.maximum(logits, own, out=logits)
    attention = logits.softmax(-1).mean(-2)
    del logits, own
    importance = F.max_pool1d(attention, joint.pool_kernel, stride=1, padding=joint.pool_kernel // 2)
    unit = key / key.norm(dim=-1, keepdim=True)
    cosines = unit @ unit.mT
    cosines.diagonal(dim1=-2, dim2=-1).zero_()
    redundancy = cosines.mean(-2).softmax(-1)
    score = joint.mix_lambda * importance - (1 - joint.mix_lambda) * redundancy
    return score.topk(budget).indices.sort().values


def whole_matrix_bytes(num_queries: int, length: int) -> int:
    """Memory that ``whole_matrix`` takes at its peak: two matrices of queries x keys, or one of keys x keys."""
    return 4 * NUM_GROUPS * length * max(2 * num_queries, length)


@dataclass(frozen=True)
class Comparison:
    """One case: seconds of runs and bytes at the peak of our side and, where it fits, of the whole-matrix form.

    ``same`` is the share of kept keys that both keep; ``needed`` and ``there`` are bytes, of the whole matrices and of
    free memory.
    """

    num_queries: int
    seconds: list[list[float]]
    peaks: list[int]
    same: float | None
    needed: int
    there: int

    @property
    def medians(self) -> list[float]:
        return [statistics.median(own) for own in self.seconds]


def compare(sizes: Sizes, granularity: Unit, num_runs: int, device: str) -> Comparison:
    joint = Joint(query_granularity=granularity)
    num_queries = joint.num_queries(sizes.frame, sizes.chunk)
    random = torch.Generator().manual_seed(0)
    query = torch.randn(NUM_HEADS, num_queries, CHANNELS, generator=random).to(device)
    key = torch.randn(NUM_GROUPS, sizes.length, CHANNELS, generator=random).to(device)
    position = torch.arange(sizes.length, device=device).expand(NUM_GROUPS, -1)
    entries = Entries(query, key, key, position, None, 0, sizes.frame, sizes.chunk)
    sides: list[Callable[[], Tensor]] = [lambda: joint.select(entries, sizes.budget).indices]
    needed, there = whole_matrix_bytes(num_queries, sizes.length), _free_bytes(device)
    if needed < 0.9 * there:
        sides.append(lambda: whole_matrix(query, key, sizes.budget, joint))
    kept, peaks, seconds = [], [], [[] for _ in sides]
    for side in sides:
        with PeakBytes() as memory:
            kept.append(side())
        peaks.append(memory.peak)
    for _ in range(num_runs):
        for side, own in zip(sides, seconds, strict=True):
            own.append(timed(side, device))
    same = None
    if len(sides) == 2:
        same = sum(torch.isin(ours, theirs).sum().item() for ours, theirs in zip(*kept, strict=True)) / kept[0].numel()
    return Comparison(num_queries, seconds, peaks, same, needed, there)


def _line(sizes: Sizes, granularity: Unit, num_runs: int, device: str) -> str:
    case = compare(sizes, granularity, num_runs, device)
    cells = [cell(own, peak) for own, peak in zip(case.seconds, case.peaks, strict=True)]
    front = f"{sizes.length:>6}  {granularity:>5} {case.num_queries:>7}  {cells[0]:>40}"
    if case.same is None:
        return f"{front}  not run: needs {case.needed / GIB:.1f} GiB of {case.there / GIB:.1f} free"
    gain = case.medians[1] / case.medians[0]
    return f"{front}  {cells[1]:>40}  {gain:6.1f}x  {case.same:9.4%}"


def _whole_video(job: Job, num_runs: int) -> str:
    from experiments.run.runner import Runner  # it needs packages of video files, which bench gpu does without

    compressed = KvPolicy(select=Joint(), budget=BUDGET)
    method = job.method if job.method.kv.budget else replace(job.method, kv=compressed)
    runner = Runner(job)
    takes = [runner.take(method, job.prompts[0]) for _ in range(num_runs)]
    share = Spread.of([take.sections_s.get("compression", 0.0) / take.latency_s for take in takes])
    latency = Spread.of([take.latency_s for take in takes])
    return (
        f"{job.model_name}, {job.setting_name} setting, {job.num_frames} frames, {job.method_name}, keeping "
        f"{method.kv.budget}: compressing takes {share.median:.2%} ({share.low:.2%}-{share.high:.2%}) of "
        f"{latency.median:.2f} s a video"
    )


def _free_bytes(device: str) -> int:
    return torch.cuda.mem_get_info()[0] if device.startswith("cuda") else psutil.virtual_memory().available


def _lengths(text: str) -> list[int]:
    lengths = [whole_number("lengths", part) for part in text.split(",")]
    frames = CHUNKS * FRAMES_PER_CHUNK
    for length in lengths:
        if length % frames:
            raise BadInput(f"lengths={text}: {length} keys are not {frames} whole frames; choose multiples of {frames}")
    return lengths


def _granularities(text: str) -> list[str]:
    for name in text.split(","):
        if name not in get_args(Unit):
            raise BadInput(f"queries={text}: {name!r} is unknown; choose among {', '.join(get_args(Unit))}")
    return text.split(",")


def _shown(text: str) -> list[str]:
    for name in text.split(","):
        if name not in SHOWN:
            raise BadInput(f"show={text}: {name!r} is unknown; {nearest(name, list(SHOWN))}")
    return text.split(",")
