"""Calibrate a policy on a model: what it needs to know of the model, measured once on a few prompts, kept in a file.

``python -m experiments.calibrate reuse=placed [model=magi] [setting=embedded] [shares=0.25,0.35] [num_prompts=8]``
makes the plan of ``reuse=placed`` (which steps compute, see flowcache/reuse/plan.py), for the forecast of
``method=flowcast_fast`` or the one given. It runs vanilla on the setting's calibration prompts and finds the cheapest
paths for several rules of what an error does to the video. The prompts (``tried_prompts=4``: the first four) are really
run with each, and for every share the rule is kept whose videos come nearest to vanilla's. What it found, and how near,
is printed, and written to output_dir/plans/<model>_<setting>.json (``publish=true``: to conf/plans/, where runs of that
model and setting find it). ``tried_prompts=0`` takes the default rule and runs no more than vanilla. Another forecast's
plan is another file, that of ``reuse=shortest_path`` <model>_<setting>_hold.json.

``reuse=magcache`` makes the table of ratios that it decides by, output_dir/ratios/<model>_<setting>.json, from
vanilla's outputs alone.

``python -m experiments.calibrate kv=forcing_kv`` (or ``kv=dummy_forcing``: they share one file) measures what frames
each head attends to, see experiments/studies/heads.py, and writes output_dir/heads/<model>_<setting>.json
(``publish=true``: conf/heads/).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from baselines.magcache import MagCache
from baselines.magnitudes import Magnitudes
from eval.atomic import atomic_path
from experiments.job.cli import check_overrides, compose_config
from experiments.job.errors import BadInput, command
from experiments.job.groups import CONF
from experiments.job.job import Job, make_job, refuse_random_weights
from experiments.job.paths import shown
from experiments.job.units import counted
from experiments.run.model_pool import Map, model_pool
from experiments.run.runner import Runner
from experiments.show.methods import known_methods
from experiments.show.results import publishing
from experiments.studies import heads
from experiments.studies.magnitudes import calibrate_magnitudes
from experiments.studies.placement import Compute, Gaps, Position, Rule, gap_costs, place, positions
from experiments.studies.provenance import made_for
from experiments.studies.trials import Vanilla, tried, vanilla
from flowcache.kv.head_map import HeadMap
from flowcache.method import Method
from flowcache.reuse.placed import Placed
from flowcache.reuse.plan import Plan, chunk_times
from flowcache.reuse.replay import Replay
from flowcache.schedule import Schedule

OPTIONS = ("shares", "tried_prompts")
SHARES = (0.15, 0.2, 0.25, 0.35, 0.5, 0.75)
SEED = 4321  # not run.py's
OURS, PLANNED_FOR = "flowcast_fast", "corrected"  # its forecast, whose plans are called by no name
NUM_PROMPTS = 8
RULES = tuple(Rule(first_ratio=ratio) for ratio in (4.0, 16.0, 64.0, 256.0))
MADE = {"plans": Plan, "ratios": Magnitudes, "heads": HeadMap}  # by folder
SKIPPED = ("denoise", "near_clean")  # kinds of work that a skipped step is spared
LONGEST_GAP = 16  # steps from one computed one to the next


@dataclass(frozen=True)
class Found:
    """A share's plan, and what it came to on the tried prompts.

    Attributes:
        steps: of every position.
        share: of vanilla's FLOPs, executed where prompts were tried, else as planned.
        latent_snr_db: mean over the tried prompts, and the least; None where none was tried.
    """

    rule: Rule
    steps: list[list[int]]
    share: float
    latent_snr_db: tuple[float, float] | None


def compute_of(run: Vanilla) -> Compute:
    """FLOPs by chunk and step of a run that computed everything."""
    own_step = {(entry.row, entry.chunk): entry.step for entry in run.trace.entries}
    steps = {chunk: [0.0] * run.schedule.num_steps for chunk in run.grams}
    fixed = 0.0
    for row, work in run.trace.work:
        if work.kind in SKIPPED:
            steps[work.chunk][own_step[row, work.chunk]] += work.flops
        else:
            fixed += work.flops
    return Compute({chunk: np.array(own) for chunk, own in steps.items()}, fixed)


def plans(job: Job, runs: Sequence[Vanilla], shares: Sequence[float], rules: Sequence[Rule]) -> list[list[Found]]:
    """For every share what each rule places, nothing run."""
    schedule = runs[0].schedule
    found = _positions(schedule)
    compute = compute_of(runs[0])
    gaps: dict[float, list[Gaps]] = {}
    placed: list[list[Found]] = [[] for _ in shares]
    for rule in rules:
        if rule.length_power not in gaps:
            gaps[rule.length_power] = [Gaps(p, job.method.forecast, rule.length_power, LONGEST_GAP) for p in found]
        own = gaps[rule.length_power]
        costs = [
            gap_costs(each, [run.grams[c] for run in runs for c in p.chunks], rule, rule.position_weight(p))
            for p, each in zip(found, own, strict=True)
        ]
        for share, kept in zip(shares, placed, strict=True):
            steps, left = place(share, found, own, costs, compute, rule.row_cost)
            kept.append(Found(rule, steps, left, None))
    return placed


def method_of(job: Job, schedule: Schedule, steps: Sequence[list[int]]) -> Method:
    """The job's method with the computed steps of every position."""
    own = {chunk: set(chosen) for p, chosen in zip(_positions(schedule), steps, strict=True) for chunk in p.chunks}
    rows = (tuple(s.chunk for s in row.steps if s.step in own[s.chunk]) for row in schedule.rows)
    return replace(job.method, reuse=Replay(computed=tuple(rows)))


def best_of(job: Job, runs: Sequence[Vanilla], placed: Sequence[Sequence[Found]], map_model: Map) -> Iterator[Found]:
    """Of every share's plans the one that comes nearest to vanilla on the prompts of ``runs``, as it is found."""
    plans = [found for candidates in placed for found in candidates]
    methods = [method_of(job, runs[0].schedule, found.steps) for found in plans]
    results = map_model(tried, [(method, run) for method in methods for run in runs])
    for candidates in placed:
        came_to = []
        for found in candidates:
            snr, shares = zip(*(next(results) for _ in runs), strict=True)
            score = (statistics.mean(snr), min(snr))
            came_to.append(replace(found, share=statistics.mean(shares), latent_snr_db=score))
        yield max(came_to, key=lambda found: found.latent_snr_db[0])


def calibrate(job: Job, map_model: Map, shares: Sequence[float], num_tried: int) -> dict[str, Any]:
    """The plan file's content. Prints what it finds."""
    runs: list[Vanilla] = []
    for run in map_model(vanilla, job.prompts):
        runs.append(run)
        print(f"vanilla {len(runs)}: {run.prompt}", flush=True)
    placed = plans(job, runs, shares, RULES if num_tried else (Rule(),))
    found = best_of(job, runs[:num_tried], placed, map_model) if num_tried else (own for (own,) in placed)
    best: dict[float, Found] = {}
    for share, own in zip(shares, found, strict=True):
        best[share] = own
        print(_told(share, own, num_tried), flush=True)
    schedule = runs[0].schedule
    where = _positions(schedule)
    return {
        "part": "placed",
        **made_for(job),
        "forecast": job.method.described()["forecast"],
        "times": list(where[0].times),
        "shares": {f"{share:g}": _by_window(where, found.steps) for share, found in best.items()},
        "fit": {
            f"{share:g}": {
                "share": round(found.share, 4),
                "rule": asdict(found.rule),
                "latent_snr_db": found.latent_snr_db and [round(value, 2) for value in found.latent_snr_db],
                "tried_prompts": num_tried,
            }
            for share, found in best.items()
        },
    }


def _positions(schedule: Schedule) -> list[Position]:
    chunks = (chunk for window in schedule.windows for chunk in window.generated)
    return positions(schedule, {chunk: chunk_times(schedule, chunk) for chunk in chunks})


def _by_window(where: Sequence[Position], steps: Sequence[list[int]]) -> dict[str, list[list[int]]]:
    """Positions are in order, and those that stand alike are the last of their window."""
    kinds = ("first_window", "later_windows")
    return {kind: [own for p, own in zip(where, steps, strict=True) if p.window == i] for i, kind in enumerate(kinds)}


def _told(share: float, found: Found, num_tried: int) -> str:
    text = (
        f"share {share:g}: {'/'.join(str(len(own)) for own in found.steps)} steps by position, {found.share:.3f} left"
    )
    if found.latent_snr_db is None:
        return text
    mean, least = found.latent_snr_db
    rule = f"first_ratio {found.rule.first_ratio:g}"
    return f"{text}, {rule}: latents {mean:.1f} dB, least {least:.1f} ({counted(num_tried, 'calibration prompt')})"


def _numbers(own: dict[str, str]) -> tuple[tuple[float, ...], int | None]:
    """The shares, and how many prompts to try plans on; None for all."""
    try:
        shares = tuple(float(text) for text in own.get("shares", "").split(",") if text) or SHARES
        num_tried = int(own["tried_prompts"]) if "tried_prompts" in own else None
    except ValueError:
        shares, num_tried = (), -1
    if not shares or not all(0 < share < 1 for share in shares) or (num_tried or 0) < 0:
        raise BadInput(
            "shares must be numbers between 0 and 1, such as shares=0.25,0.35, and tried_prompts a whole number of at "
            "least 0"
        )
    return shares, num_tried


def with_defaults(overrides: Sequence[str]) -> list[str]:
    """Unless others are given, the method is the policy's own, of the same name, or else ours, and the seed not
    run.py's."""
    given = {key: value for key, _, value in (override.partition("=") for override in overrides)}
    reuse = given.get("reuse")
    own = reuse if reuse in known_methods() else OURS
    defaults = {"method": own, "seed": str(SEED)}
    return [*(f"{key}={value}" for key, value in defaults.items() if key not in given), *overrides]


def calibration_job(overrides: Sequence[str]) -> Job:
    """Its prompts are the setting's for calibration, unless others are given. It follows no calibration: one is to be
    made."""
    given = {override.partition("=")[0] for override in overrides}
    overrides = with_defaults(overrides)
    config = compose_config(overrides)
    options = (kind.option.split(".") for kind in MADE.values())
    overrides += [f"{group}.{option}=null" for group, option in options if option in config[group]]
    if "prompts" in given:
        return make_job(compose_config(overrides))
    if config.setting.get("calibration_prompts") is None:
        raise BadInput(f"setting={config.setting.name} names no calibration_prompts; give prompts=<file>")
    job = make_job(compose_config([*overrides, f"prompts={config.setting.calibration_prompts}"]))
    return job if "num_prompts" in given else replace(job, prompts=job.prompts[:NUM_PROMPTS])


def check_placeable(job: Job) -> None:
    """Refuse a forecast that paths over steps do not tell from another, and steps of which there is no choice. Raises
    BadInput."""
    forecast = job.method.forecast
    if forecast.depth > 2 or forecast.correction > 2 or forecast.limit is not None:
        raise BadInput(
            "a plan is made of the last two computed steps and the next one; choose a forecast of two outputs (hold, "
            "linear, damped), forecast.correction of at most 2 and no forecast.limit. A run may then take another"
        )
    if Runner(job).check(job.prompts[0]).schedule.num_steps < 2:
        raise BadInput("a plan needs at least 2 steps to choose from; give setting.num_steps=<more>")


def place_of(job: Job, forecast: str) -> Path:
    """Of the file that a job makes, within conf/ or an output folder; of a plan by the forecast that it is for. Raises
    BadInput."""
    own = []
    if job.method.kv.select.by_head:
        folder = "heads"
    elif isinstance(job.method.reuse, MagCache):
        folder = "ratios"
    elif isinstance(job.method.reuse, Placed):
        folder = "plans"
        own = [] if forecast == PLANNED_FOR else [forecast]
    else:
        raise BadInput(
            f"reuse={type(job.method.reuse).__name__} takes no calibration; give reuse=placed, shortest_path or "
            "magcache, or kv=forcing_kv, or leave it out"
        )
    return Path(folder, f"{'_'.join([job.model_name, job.setting_name, *own])}.json")


def merged(made: dict[str, Any], path: Path) -> dict[str, Any]:
    """With the shares of a file that is there, where it was made of the same; else this one replaces it."""
    if not path.is_file():
        return made
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        same = all(before[key] == made[key] for key in ("weights", "options", "forecast", "times"))
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        print(f"{shown(path)} was made of other weights, options or forecast, and is replaced")
        return made
    kept = {key: before[key] | made[key] for key in ("shares", "fit")}
    return made | {key: dict(sorted(own.items(), key=lambda item: float(item[0]))) for key, own in kept.items()}


def text_of(made: dict[str, Any]) -> str:
    """JSON with a line for every entry, and for every share's."""
    lines = []
    for key, value in made.items():
        if key in ("shares", "fit") and isinstance(next(iter(value.values())), dict):
            inner = ",\n".join(f"  {json.dumps(share)}: {json.dumps(own)}" for share, own in value.items())
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


@command("calibrate")
def main(arguments: list[str]) -> int:
    publish, arguments = publishing(arguments)
    own = {key: value for key, _, value in (a.partition("=") for a in arguments) if key in OPTIONS}
    overrides = [argument for argument in arguments if argument.partition("=")[0] not in OPTIONS]
    shares, num_tried = _numbers(own)
    check_overrides(with_defaults(overrides))
    job = calibration_job(overrides)
    refuse_random_weights(job, "a calibration means")
    file = place_of(job, compose_config(with_defaults(overrides)).forecast.name)
    folder = file.parts[0]
    if own and folder != "plans":
        raise BadInput(f"{next(iter(own))} is of plans, and {MADE[folder].made_by} makes none; leave it out")
    if folder == "plans":
        check_placeable(job)
    num_tried = len(job.prompts) if num_tried is None else num_tried
    if num_tried > len(job.prompts):
        raise BadInput(f"tried_prompts={num_tried} but there are {counted(len(job.prompts), 'prompt')}")
    path = (CONF if publish else job.output_dir) / file
    with model_pool(job) as map_model:
        if folder == "heads":
            text = heads.text_of(heads.head_map(job, map_model))
        elif folder == "ratios":
            text = text_of(calibrate_magnitudes(job, map_model))
        else:
            text = text_of(merged(calibrate(job, map_model, shares, num_tried), path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"written: {shown(path)}" + ("" if publish else f"; use it with {MADE[folder].option}={shown(path)}"))
    return 0
