"""Find the value of a method's option that leaves a wanted share of vanilla's compute.

``python -m experiments.tune method=teacache_fast share=0.735 [option=threshold] [between=0,1] [num_prompts=8]``
bisects between two values on the mean share of FLOPs and prints what it found. Its prompts are the setting's for
calibration and its seed theirs, so that tables are of others, unless ``prompts=`` and ``seed=`` say otherwise. Put
it into conf/tuned/<model>_<setting>_<reuse>.yaml. ``option`` may be left out where a method has one number of its own
with a fraction; ``between`` is 0,1 for such numbers and 1,16 for whole ones. Where a whole one may be a fraction,
too (``reuse.every``), ends with a point search fractions: ``between=1.0,16.0``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from experiments.job.cli import check_overrides, compose_config
from experiments.job.errors import BadInput, command
from experiments.job.job import Job, make_job, refuse_random_weights
from experiments.job.names import nearest
from experiments.job.units import counted
from experiments.records.collect import default_options, flat
from experiments.run.runner import Runner
from experiments.studies.calibrate import SEED
from flowcache.method import VANILLA, Method
from flowcache.sampler import sample
from flowcache.trace import Trace

OPTIONS = ("share", "option", "between")
MOST_STEPS = 14
TOLERANCE = 0.004  # of the share


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


def numbers(job: Job) -> dict[str, float]:
    """The job's method's own options that are numbers, by dotted name: those that vanilla does not have."""
    shared = default_options(job, "vanilla")
    own = flat(job.method.described())
    return {
        name: value
        for name, value in own.items()
        if name not in shared and isinstance(value, int | float) and not isinstance(value, bool)
    }


def chosen_option(job: Job, asked: str | None) -> str:
    """The option to tune: the one asked for, or the only one with a fraction. Raises BadInput."""
    known = numbers(job)
    if not known:
        raise BadInput(f"method {job.method_name} has no number of its own to tune")
    if asked is not None:
        meant = [name for name in known if name == asked or name.rpartition(".")[2] == asked]
        if len(meant) != 1:
            raise BadInput(f"method {job.method_name} has no number {asked!r} to tune; {nearest(asked, list(known))}")
        return meant[0]
    fractions = [name for name, value in known.items() if isinstance(value, float)]
    if len(fractions) != 1:
        raise BadInput(f"method {job.method_name} has several numbers; give option=<one of {', '.join(known)}>")
    return fractions[0]


def tune(share_at: Callable[[float], float], share: float, low: float, high: float) -> tuple[float, float]:
    """The value between two, and the share of compute that it leaves: of those tried, the one nearest to ``share``.

    Whole numbers stay whole. Raises BadInput where the shares at the two ends do not enclose it.
    """
    whole = isinstance(low, int) and isinstance(high, int)
    seen = {value: share_at(value) for value in (low, high)}
    least, most = sorted(seen.values())
    if not least - TOLERANCE <= share <= most + TOLERANCE:
        raise BadInput(
            f"share={share:g}: {low:g} to {high:g} leave {least:.4f} to {most:.4f} of vanilla's compute; "
            "give between=<lower>,<higher>"
        )
    rising = seen[high] > seen[low]
    for _ in range(MOST_STEPS):
        # Geometric steps once a lower bound is known: values of interest span two decades.
        between = math.sqrt(low * high) if low > 0 else high / 4
        value = (low + high) // 2 if whole else between
        if value in seen or min(abs(left - share) for left in seen.values()) < TOLERANCE:
            break
        seen[value] = share_at(value)
        if (seen[value] > share) == rising:
            high = value
        else:
            low = value
    return min(seen.items(), key=lambda found: abs(found[1] - share))


def _ends(text: str | None, whole: bool) -> tuple[float, float]:
    if text is None:
        return (1, 16) if whole else (0.0, 1.0)
    whole = whole and "." not in text
    try:
        low, high = map(int if whole else float, text.split(","))
    except ValueError:
        low = high = 0
    if not 0 <= low < high:
        kind = "whole numbers" if whole else "numbers"
        raise BadInput(f"between={text} must be two {kind} from 0 on, the lower first, such as between=1,8")
    return low, high


def _is_share(text: str) -> bool:
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False


def on_calibration_prompts(overrides: Sequence[str]) -> list[str]:
    """With prompts and seed that no table is of, unless others are given or the setting names none."""
    given = {override.partition("=")[0] for override in overrides}
    prompts = compose_config(list(overrides)).setting.get("calibration_prompts")
    own = {"prompts": prompts, "seed": SEED}
    return [*(f"{key}={value}" for key, value in own.items() if key not in given and value is not None), *overrides]


def _own_options(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """This command's options, and the job's overrides."""
    own = {key: value for key, _, value in (a.partition("=") for a in arguments) if key in OPTIONS}
    return own, [argument for argument in arguments if argument.partition("=")[0] not in OPTIONS]


@command("tune")
def main(arguments: list[str]) -> int:
    own, overrides = _own_options(arguments)
    if not _is_share(own.get("share", "")):
        raise BadInput("give share=<wanted share of vanilla's compute>, between 0 and 1")
    check_overrides(overrides)
    overrides = on_calibration_prompts(overrides)
    job = make_job(compose_config(overrides))
    refuse_random_weights(job, "a tuned value means")
    option = chosen_option(job, own.get("option"))
    low, high = _ends(own.get("between"), whole=isinstance(numbers(job)[option], int))
    runner = Runner(job)
    runner.check(job.prompts[0])
    model = runner.model
    vanilla = executed_flops(replace(job, prompts=job.prompts[:1]), model, VANILLA)  # of every prompt

    def share_at(value: float) -> float:
        tried = make_job(compose_config([*overrides, f"{option}={value}"]))
        Runner(tried).check(tried.prompts[0])
        left = executed_flops(tried, model, tried.method) / vanilla
        print(f"{option} {value:.5g} leaves {left:.4f}", flush=True)
        return left

    value, left = tune(share_at, float(own["share"]), low, high)
    found = f"{option} {value:.5g} leaves {left:.4f} of vanilla's FLOPs"
    print(f"{job.method_name}: {found} ({counted(len(job.prompts), 'prompt')})")
    return 0
