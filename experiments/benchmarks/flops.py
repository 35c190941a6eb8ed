"""A video's FLOPs counted while it is made, against the count from shapes that every record holds.

``python -m experiments.bench flops [key=value ...]``, on the job's first prompt. Fails if any row differs.
"""

from __future__ import annotations

from eval.flops import ExecutedFlops, check
from experiments.job.job import Job
from experiments.run.runner import Runner
from flowcache.sampler import generate
from flowcache.trace import Trace

OPTIONS = ()
_TERA = 1e12


def run(job: Job) -> None:
    """Print what every section executed, and how the transformer's part of it is made up."""
    runner, prompt, trace = Runner(job), job.prompts[0], Trace()
    runner.check(prompt)
    with ExecutedFlops() as executed:
        inputs = (runner.model, prompt, job.num_frames, job.method, job.seed)
        for _ in generate(*inputs, trace, executed.clock, **job.generation_options):
            pass
    print(f"{job.model_name}, {job.setting_name} setting, {job.method_name}: one video of {job.num_frames} frames")
    print(f"counted while it was made, TFLOPs {'whole':>22}  {'of it attention':>15}")
    for name, visit in executed.by_section().items():
        print(f"  {name or 'other':14} {visit.flops / _TERA:41.6f}  {visit.attention_flops.total() / _TERA:15.6f}")
    rows = check(executed, trace)
    print(f"counted from shapes, TFLOPs: {trace.flops / _TERA:.6f}; equal to what ran in each of {rows} rows")
    for title, counts in (("by operation", trace.flops_by_part()), ("by kind", trace.flops_by_kind())):
        print(f"  {title:14} " + ", ".join(f"{_plain(name)} {flops / _TERA:.6f}" for name, flops in counts.items()))


def _plain(name: str) -> str:
    return name.removesuffix("_flops").replace("_", "-")
