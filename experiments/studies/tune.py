"""Find the threshold that leaves a wanted share of vanilla's compute.

``python -m experiments.tune method=teacache_fast share=0.735 [num_prompts=8]`` bisects on the mean share of FLOPs over
the first prompts of the setting and prints the threshold; put it into conf/tuned/<model>_<setting>_<reuse>.yaml.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from experiments.job.cli import check_overrides, compose_config
from experiments.job.errors import BadInput, command
from experiments.job.job import Job, make_job, refuse_random_weights
from experiments.job.units import counted
from experiments.run.runner import Runner
from flowcache.method import VANILLA, Method
from flowcache.sampler import sample
from flowcache.trace import Trace


def executed_flops(job: Job, model: Any, method: Method) -> float:
    """Mean over the job's prompts; nothing is decoded."""
    totals = []
    for prompt in job.prompts:
        trace = Trace()
        generation = model.generation(prompt, job.num_frames, method, job.seed, **job.generation_options)
        for _ in sample(generation, trace):
            pass
        totals.append(trace.flops)
    return statistics.mean(totals)


def tune(job: Job, share: float, low: float = 0.0, high: float = 1.0, tolerance: float = 0.004) -> tuple[float, float]:
    """Threshold and the share of vanilla's FLOPs it leaves; the closest seen after bisection to ``tolerance``.

    Raises BadInput before any work.
    """
    runner = Runner(job)
    runner.check(job.prompts[0])
    model = runner.model
    vanilla = executed_flops(replace(job, prompts=job.prompts[:1]), model, VANILLA)  # the same for every prompt
    best = (0.0, 1.0)
    for _ in range(14):
        # Geometric steps once a lower bound is known: thresholds of interest span two decades.
        threshold = (low * high) ** 0.5 if low else high / 4
        left = (
            executed_flops(job, model, replace(job.method, reuse=replace(job.method.reuse, threshold=threshold)))
            / vanilla
        )
        print(f"threshold {threshold:.5f} leaves {left:.4f}", flush=True)
        if abs(left - share) < abs(best[1] - share):
            best = (threshold, left)
        if abs(left - share) < tolerance:
            break
        low, high = (threshold, high) if left > share else (low, threshold)
    return best


def _is_share(text: str) -> bool:
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False


@command("tune")
def main(arguments: list[str]) -> int:
    shares = [a.partition("=")[2] for a in arguments if a.startswith("share=")]
    if len(shares) != 1 or not _is_share(shares[0]):
        raise BadInput("give share=<wanted share of vanilla's compute>, between 0 and 1")
    overrides = [a for a in arguments if not a.startswith("share=")]
    check_overrides(overrides)
    job = make_job(compose_config(overrides))
    refuse_random_weights(job, "a threshold means")
    if not hasattr(job.method.reuse, "threshold"):
        raise BadInput(f"method {job.method_name} has no threshold to tune")
    threshold, left = tune(job, float(shares[0]))
    found = f"threshold {threshold:.5f} leaves {left:.4f} of vanilla's FLOPs"
    print(f"{job.method_name}: {found} ({counted(len(job.prompts), 'prompt')})")
    return 0
