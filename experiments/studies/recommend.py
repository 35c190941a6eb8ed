"""Which method and which KV policy to take for a checkpoint, and the command to run them.

``python -m experiments.recommend checkpoint=<directory> [memory=24GiB] [loss=visually_lossless] [share=0.35]
[key=value ...]`` tells the family from the files (or takes ``model=`` and ``setting=``), looks whether a plan for these
very weights is there, and proposes by the rules of conf/studies/recommend.yaml. ``loss=`` is visually_lossless, fast or
so many dB of PSNR; ``share=`` is a part of the compute instead. ``memory=`` is that of the device: the first KV policy
that fits is taken. Every figure says where it comes from: a committed table, or a count from shapes; what was never
measured, it says. No video is made and no weights are loaded; they are hashed, to know whether a plan is theirs.
Exit codes: 0 something is proposed, 1 nothing fits the memory, 2 bad input.
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.job.cli import check_overrides, compose_config
from experiments.job.errors import BadInput, command
from experiments.job.groups import CONF
from experiments.job.job import Job, make_job, refuse_random_weights
from experiments.job.names import nearest
from experiments.job.paths import shown
from experiments.job.units import counted, flops_text
from experiments.records.weights import weights_id
from experiments.run.calibrated import check_calibrations
from experiments.run.dry_run import count
from experiments.run.memory import Memory, amount, bytes_of, memory_of, model_on_meta, text_encoder_bytes
from experiments.studies.calibrate import SHARES
from experiments.studies.recorded import Figures, Speed, kv_figures, method_figures, speed
from flowcache.method import VANILLA

RULES = CONF / "studies" / "recommend.yaml"
OPTIONS = ("memory", "loss", "share")
PROPOSED = ("method", "reuse", "reuse.share", "forecast", "kv", "kv.budget", "kv/store")  # what this command chooses
SHARE, PLAN = "reuse.share", "reuse.plan"
PLANNED = "flowcast_fast"  # the method that takes a plan


@dataclass(frozen=True)
class Asked:
    """What the user wants: a loss in dB or a share of the compute, bytes of memory, and the job's other options."""

    least_db: float
    share: float | None
    memory: int | None
    overrides: list[str]


@dataclass(frozen=True)
class Choice:
    """A method with its options, what is recorded of it, and whether that keeps what was asked for."""

    method: str
    overrides: list[str]
    figures: Figures | None
    speed: Speed | None
    keeps: bool
    note: str | None


@dataclass(frozen=True)
class KvChoice:
    """A KV policy with its options, and the memory that the job takes with it; ``refused`` is why it cannot be."""

    name: str
    overrides: list[str]
    memory: Memory | None
    record: Figures | None
    refused: str | None = None


def read_rules() -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(RULES))


def asked(arguments: Sequence[str], rules: dict[str, Any]) -> Asked:
    """Raises BadInput."""
    given = {key: value for key, _, value in (a.partition("=") for a in arguments)}
    for key in PROPOSED:
        if key in given:
            raise BadInput(f"{key}= is what this command proposes; leave it out, or run it with python run.py")
    if "loss" in given and "share" in given:
        raise BadInput("loss= and share= both say how much to compute; give one of them")
    loss = given.get("loss", rules["loss"])
    share = _number(given["share"]) if "share" in given else None
    if "share" in given and not (share is not None and 0 < share <= 1):
        raise BadInput(f"share={given['share']} must be a number above 0 and at most 1, of the compute")
    least_db = rules["losses"].get(loss, _number(loss))
    if least_db is None or not 0 < least_db < float("inf"):
        raise BadInput(f"loss={loss} is unknown; {nearest(loss, list(rules['losses']))}, or a number of dB, such as 45")
    memory = bytes_of(given["memory"]) if "memory" in given else None
    return Asked(least_db, share, memory, [a for a in arguments if a.partition("=")[0] not in OPTIONS])


def plan_of(job: Job) -> str | None:
    """The name of the job's plan, where it was made on the job's weights; None without one."""
    plan = getattr(job.method.reuse, "plan", None)
    return plan.name if plan is not None and plan.provenance.get("weights") == weights_id(job) else None


def figures_of(config: DictConfig, rules: dict[str, Any], method: str) -> list[Figures]:
    """Recorded points of a method on the model, cheapest first."""
    how, names = rules["curves"][method], (config.model.name, config.setting.name)
    return method_figures(*names, method, how["curve"], how["option"], rules["records"])


def choose(config: DictConfig, rules: dict[str, Any], situation: str, asked: Asked) -> Choice:
    """The rules' method for a situation, at the option that keeps the loss, or the share, at the least compute."""
    points = [(m, each) for m in rules["methods"][situation] for each in figures_of(config, rules, m)]
    method = rules["methods"][situation][0]
    if asked.share is not None:
        if rules["curves"][method]["option"] == SHARE:
            same = next((each for _, each in points if each.value and float(each.value) == asked.share), None)
            return _choice(config, rules, method, same, f"{asked.share:g}", True)
        within = [each for each in points if each[1].compute_left <= asked.share + 0.01]
        best = max(within, key=lambda each: each[1].psnr_db) if within else points[0] if points else None
        keeps = bool(within)
    else:
        enough = [each for each in points if each[1].least_db >= asked.least_db]
        best = min(enough, key=lambda each: each[1].compute_left, default=None)
        keeps = best is not None
        if best is None and points:
            best = max(points, key=lambda each: each[1].least_db)
    if best is None:
        return _choice(config, rules, method, None, None, False)
    return _choice(config, rules, best[0], best[1], best[1].value, keeps)


def _choice(
    config: DictConfig, rules: dict[str, Any], method: str, figures: Figures | None, value: str | None, keeps: bool
) -> Choice:
    how = rules["curves"][method]
    told = [f"{how['option']}={value}", *how.get("with", [])] if value is not None else []
    times = speed(config.model.name, config.setting.name, method, value, how["option"])
    return Choice(method, [f"method={method}", *told], figures, times, keeps, how.get("note"))


def kv_choices(
    model: Any, config: DictConfig, rules: dict[str, Any], overrides: list[str], limit: int | None
) -> list[KvChoice]:
    """The rules' KV policies in their order, up to the first that fits."""
    tried: list[KvChoice] = []
    text = None
    for entry in rules["kv"]:
        names = (config.model.name, config.setting.name)
        record = kv_figures(*names, entry["record"]) if "record" in entry else None
        try:
            job = make_job(compose_config([*overrides, *entry["overrides"]]))
            if entry["overrides"]:
                check_calibrations(job)
            if text is None:
                text = text_encoder_bytes(job.checkpoint)
            on_gpu = job.device.startswith("cuda") or not config.setting.embedded
            memory = memory_of(job, model, text, limit, on_gpu)
        except BadInput as error:
            if not entry["overrides"]:
                raise
            tried.append(KvChoice(entry["name"], entry["overrides"], None, record, str(error)))
            continue
        tried.append(KvChoice(entry["name"], entry["overrides"], memory, record))
        if limit is None or memory.peak <= limit:
            break
    return tried


def source(figures: Figures, setting: str) -> str:
    """Where recorded figures are from, and how far that is from what was asked about."""
    where = "the embedded model of this family" if figures.setting == "embedded" else f"setting={figures.setting}"
    far = "" if figures.setting == setting else "; nothing is measured at full size"
    return f"measured on {where}, {counted(figures.num_videos, 'video')}: {figures.source}{far}"


def told_method(choice: Choice, asked: Asked, setting: str) -> list[str]:
    lines = [f"method      {' '.join(choice.overrides)}"]
    figures = choice.figures
    if figures is None:
        lines.append("  no figures: there is no record of this method at this option on this family")
    else:
        lines += [
            f"  compute   {figures.compute_left:.3f} of {figures.baseline}'s is left ({source(figures, setting)})",
            f"  quality   {figures.quality} (the same table)",
        ]
    if not choice.keeps and figures is not None:
        wanted = f"share={asked.share:g}" if asked.share is not None else f"{asked.least_db:g} dB"
        lines.append(f"  no record on this family keeps {wanted} by this method; this is the nearest")
    if choice.note:
        lines.append(f"  note      {choice.note}")
    if choice.speed is None:
        lines.append("  time      no record of it; the last command below times three rows of yours")
    else:
        given = choice.speed
        interval = "" if given.low is None else f" ({given.low:.2f}-{given.high:.2f})"
        lines.append(
            f"  time      {given.speedup:.2f}x as fast as vanilla{interval}, {counted(given.num_pairs, 'pair')} on the "
            f"embedded model: {given.source}"
        )
    return lines


def told_kv(tried: Sequence[KvChoice], limit: int | None, setting: str) -> list[str]:
    """The policy that was taken, or that none fits, and what each before it would take."""
    lines = []
    last = tried[-1]
    fits = last.memory is not None and (limit is None or last.memory.peak <= limit)
    for each in tried[:-1] if fits else tried:
        given = " ".join(each.overrides) or "the whole KV cache"
        took = f"refused: {each.refused}" if each.memory is None else f"takes {amount(each.memory.peak)}: too much"
        lines.append(f"  tried     {given}: {took}")
    if not fits:
        least = min((each.memory for each in tried if each.memory), key=lambda memory: memory.peak)
        told = [f"  memory    {least.told}", "            at least, from shapes, in a GPU's number types"]
        return [f"KV policy   none fits memory={amount(limit)}", *told, *lines]
    found = [f"KV policy   {' '.join(last.overrides) or 'kv=full'}: {last.name}"]
    of = "no limit was given (memory=24GiB)" if limit is None else f"memory={amount(limit)}"
    found += [f"  memory    {last.memory.told}", "            from shapes, in a GPU's number types; " + of]
    if last.overrides:
        record = last.record
        found.append(
            "  quality   there is no record of it on this family"
            if record is None
            else f"  quality   {record.quality}, by itself ({source(record, setting)}); with a method: no record"
        )
    return [*found, *lines]


def told_calibration(job: Job, planned: Choice, kv: list[str], overrides: list[str], setting: str) -> list[str]:
    """How to make the plan that is missing, what it brings on record, and the run by it."""
    shares = [each.partition("=")[2] for each in planned.overrides if each.startswith(f"{SHARE}=")]
    calibrate = ["python", "-m", "experiments.calibrate", "reuse=placed", *overrides]
    calibrate += [f"shares={share}" for share in shares if float(share) not in SHARES]
    file = shown(job.output_dir / "plans" / f"{job.model_name}_{job.setting_name}.json")
    later = ["python", "run.py", *overrides, *planned.overrides, f"{PLAN}={file}", *kv]
    figures = planned.figures
    brings = (
        "what it brings is not on record for this family"
        if figures is None
        else f"{figures.quality} at {figures.compute_left:.3f} of its compute, {source(figures, setting)}"
    )
    return [
        "no plan is calibrated for these weights; make one first (docs/calibrate.md), then run by it:",
        f"  {shlex.join(calibrate)}",
        f"  {shlex.join(later)}",
        f"  ({brings})",
        "until then:",
    ]


@command("recommend")
def main(arguments: list[str]) -> int:
    rules = read_rules()
    wish = asked(arguments, rules)
    plans = [each for each in wish.overrides if each.startswith(f"{PLAN}=")]
    overrides = [each for each in wish.overrides if each not in plans]
    check_overrides([f"method={PLANNED}", *wish.overrides])
    config = compose_config([f"method={PLANNED}", *wish.overrides])
    job = make_job(config)
    refuse_random_weights(job, "a recommendation means")
    plan = plan_of(job)
    model = model_on_meta(config)
    with warnings.catch_warnings():  # of a plan that is missing, which is told at length
        warnings.simplefilter("ignore")
        return _recommend(job, model, config, rules, wish, overrides, plans if plan else [], plan)


def _recommend(
    job: Job,
    model: Any,
    config: DictConfig,
    rules: dict[str, Any],
    wish: Asked,
    overrides: list[str],
    plans: list[str],
    plan: str | None,
) -> int:
    num_steps = _num_steps(job, model)
    few = num_steps <= rules["few_steps"]
    situation = ("few_steps" if few else "many_steps") + ("_with_plan" if plan else "")
    choice = choose(config, rules, situation, wish)
    if plan and choice.method == PLANNED:
        _check_share(job, choice)
    base = overrides + (plans if choice.method == PLANNED else [])
    if config.model.causal_baseline and not any(each.startswith("baseline=") for each in base):
        base = [*base, f"baseline={config.model.causal_baseline}"]
    tried = kv_choices(model, config, rules, [*base, *choice.overrides], wish.memory)
    setting = config.setting.name
    weights = f"the plan {plan} was made on these weights" if plan else "no plan was made on these weights"
    print(f"{config.model.name}, setting={setting}: {counted(num_steps, 'step')} a chunk; {weights}")
    print(f"decided by the rules in {shown(RULES)}\n")
    print(*told_method(choice, wish, setting), sep="\n")
    print(*told_kv(tried, wish.memory, setting), sep="\n")
    last = tried[-1]
    if last.memory is None or (wish.memory is not None and last.memory.peak > wish.memory):
        print(
            "\nask for less: fewer setting.num_frames, a smaller setting.height and setting.width, or a smaller model"
        )
        return 1
    chosen = compose_config([*base, *choice.overrides, *last.overrides])
    print(_told_compute(chosen, make_job(chosen)), end="\n\n")
    planned = choose(config, rules, f"{situation}_with_plan", wish) if plan is None else choice
    if plan is not None or planned.method != PLANNED:
        print("run it:")
    else:
        print(*told_calibration(job, planned, last.overrides, base, setting), sep="\n")
    run = ["python", "run.py", *base, *choice.overrides, *last.overrides]
    print(
        f"  {shlex.join(run)}\nwhat it takes here, before it starts:\n  {shlex.join([*run, 'plan=true'])}", flush=True
    )
    return 0


def _told_compute(config: DictConfig, job: Job) -> str:
    flops, whole = (count(config, method).trace.flops for method in (job.method, VANILLA))
    most = "at most " if job.method.reuse.looks_at is not None else ""
    return (
        f"compute     {most}{flops_text(flops, 3)} a video, vanilla {flops_text(whole, 3)} (counted from shapes; "
        f"{'what it decides by needs the weights' if most else 'its steps are known'})"
    )


def _num_steps(job: Job, model: Any) -> int:
    """Of a chunk. Raises BadInput for what the model refuses."""
    try:
        generation = model.generation("any prompt", job.num_frames, VANILLA, job.seed, **job.generation_options)
    except ValueError as error:
        raise BadInput(str(error)) from error
    return generation.schedule.num_steps


def _check_share(job: Job, choice: Choice) -> None:
    """Refuse a share that the plan has not. Raises BadInput."""
    value = next((each.partition("=")[2] for each in choice.overrides if each.startswith(f"{SHARE}=")), None)
    shares = job.method.reuse.plan.shares
    if value is not None and float(value) not in shares:
        raise BadInput(
            f"share={value} is none of the plan {job.method.reuse.plan.name}'s, which has "
            f"{', '.join(f'{share:g}' for share in shares)}; give one of these, or calibrate it (docs/calibrate.md)"
        )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
