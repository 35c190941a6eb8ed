"""Our method against every k-th step where no plan was made for: other steps, grids, lengths, KV budgets, guidance.

``python -m experiments.robustness [model=magi] [settings="16 steps,shift 1"] [num_prompts=12]`` runs what
conf/studies/robustness.yaml lists, on latents alone: every method's are compared with those of a run that computes
everything in the same setting and with the same KV policy. Every k-th step computes as many steps as ours' FLOPs are
worth, evenly, with our forecast and with the last output held. Also there: how many calibration prompts a plan needs.
The table goes to output_dir/tables/ (``publish=true``: into results/).
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf
from torch import Tensor

from baselines.every_k import EveryK
from eval.latent_error import latent_snr_db
from eval.statistics import mean_and_interval, paired_difference
from experiments.job.cli import check_overrides, compose_config
from experiments.job.errors import BadInput, command
from experiments.job.groups import CONF
from experiments.job.job import Job, make_job, refuse_random_weights
from experiments.job.names import nearest
from experiments.job.units import counted
from experiments.records import weights_id
from experiments.run import environment
from experiments.run.calibrated import check_calibrations
from experiments.run.model_pool import Map, model_pool
from experiments.show.results import BOOTSTRAP, Column, Table, destination, made_by, publishing
from experiments.studies.calibrate import SKIPPED, calibrate, calibration_job, text_of
from flowcache.forecast.hold import Hold
from flowcache.method import Method
from flowcache.reuse.never import Never
from flowcache.sampler import sample
from flowcache.trace import Trace

OTHERS = {"even_corrected": "every k-th, our forecast", "even_held": "every k-th, held"}


def latents(_: Job, model: Any, task: tuple[Job, str, Method]) -> tuple[Tensor, int, int, int]:
    """Of a setting's video, [chunks, C, f, h, w] on the host; FLOPs, those of steps, which skipping spares, and the
    steps of a chunk."""
    job, prompt, method = task
    trace = Trace()
    generation = model.generation(prompt, job.num_frames, method, job.seed, **job.generation_options)
    made = torch.stack([latent for _, latent in sample(generation, trace)])
    of_steps = sum(flops for kind, flops in trace.flops_by_kind().items() if kind in SKIPPED)
    return made.cpu(), trace.flops, of_steps, generation.schedule.num_steps


def evenly(num_steps: int, share: float) -> EveryK:
    """Every k-th step, as many as are that share of a chunk's, the first and the last among them."""
    count = max(2, round(share * num_steps))
    return EveryK(every=(num_steps - 1) / (count - 1), warmup_steps=0)


class Videos:
    """Latents of a job's prompts by a method, made once: settings that differ in the plan alone share the others."""

    def __init__(self, map_model: Map) -> None:
        self._map = map_model
        self._made: dict[str, list[tuple[Tensor, int, int, int]]] = {}

    def of(self, job: Job, method: Method) -> list[tuple[Tensor, int, int, int]]:
        """What ``latents`` returns, of every prompt."""
        # All that a generation gets; the pool's model is the same for every job.
        key = repr((job.num_frames, job.generation_options, job.seed, job.prompts, method.described()))
        if key not in self._made:
            self._made[key] = list(self._map(latents, [(job, prompt, method) for prompt in job.prompts]))
        return self._made[key]


def compared(job: Job, videos: Videos) -> list[dict[str, Any]]:
    """A row a prompt: shares of FLOPs and dB of the latents, of ours and the others."""
    whole = videos.of(job, replace(job.method, reuse=Never(), forecast=Hold()))
    ours = videos.of(job, job.method)
    # By FLOPs, for a plan's steps are where they are worth more than an even share: with as many, even ones took less.
    even = evenly(ours[0][3], statistics.mean(own[2] / all_of[2] for own, all_of in zip(ours, whole, strict=True)))
    made = {
        "ours": ours,
        "even_corrected": videos.of(job, replace(job.method, reuse=even)),
        "even_held": videos.of(job, replace(job.method, reuse=even, forecast=Hold())),
    }
    rows = []
    for i, (reference, flops, *_) in enumerate(whole):
        row: dict[str, Any] = {"prompt": job.prompts[i]}
        for name, own in made.items():
            row[f"{name}_share"] = own[i][1] / flops
            row[f"{name}_db"] = latent_snr_db(own[i][0], reference)
        rows.append(row)
    return rows


def own_plan(overrides: Sequence[str], num_prompts: int, shares: Sequence[float], map_model: Map, folder: Path) -> str:
    """The file of plans that were calibrated for a setting on so many prompts, by the default rule."""
    job = calibration_job([*overrides, f"num_prompts={num_prompts}"])
    made = calibrate(job, _with(job, map_model), shares, num_tried=0)
    path = folder / f"{num_prompts}_prompts.json"
    path.write_text(text_of(made), encoding="utf-8")
    return str(path)


def _with(job: Job, map_model: Map) -> Map:
    """A map whose functions get this job, not the pool's: the model is the same."""
    return lambda call, tasks: map_model(_of_job, [(call, job, task) for task in tasks])


def _of_job(_: Job, model: Any, task: tuple[Any, Job, Any]) -> Any:
    call, job, own = task
    return call(job, model, own)


def rows_of(
    name: str, setting: dict[str, Any], study: dict[str, Any], overrides: Sequence[str], map_model: Map, videos: Videos
) -> list[dict[str, Any]]:
    """A table row a share. Prints each as it is found."""
    rows, given = [], {override.partition("=")[0] for override in overrides}
    own = [f"method={study['method']}", *setting["overrides"], *overrides]
    job_overrides = list(own)
    if "num_prompts" not in given:
        job_overrides.append(f"num_prompts={setting.get('num_prompts', study['num_prompts'])}")
    with tempfile.TemporaryDirectory() as folder:
        if setting.get("calibrate") == 0:
            job_overrides.append("reuse.plan=null")
        elif "calibrate" in setting:
            kept = [each for each in own if each.partition("=")[0] not in ("num_prompts", "seed", "prompts")]
            plan = own_plan(kept, setting["calibrate"], study["shares"], map_model, Path(folder))
            job_overrides.append(f"reuse.plan={plan}")
        for share in study["shares"]:
            job = make_job(compose_config([*job_overrides, f"reuse.share={share}"]))
            check_calibrations(job)
            row = {"setting": name, "share": share, **summary(pd.DataFrame(compared(job, videos)))}
            print(f"{name}, share {share:g}: ours {row['ours_db']:.1f} dB at {row['ours_share']:.3f}", flush=True)
            rows.append(row)
    return rows


def summary(frame: pd.DataFrame) -> dict[str, Any]:
    """Means with their intervals, the worst prompt, and differences prompt by prompt."""
    row: dict[str, Any] = {"n": len(frame)}
    for name in ("ours", *OTHERS):
        row[f"{name}_share"] = frame[f"{name}_share"].mean()
        row[f"{name}_db"], row[f"{name}_db_ci95"] = mean_and_interval(list(frame[f"{name}_db"]))
    row["ours_least_db"] = frame["ours_db"].min()
    for name in OTHERS:
        key = f"{name}_difference_db"
        row[key], row[f"{key}_low"], row[f"{key}_high"] = paired_difference(
            list(frame["ours_db"]), list(frame[f"{name}_db"])
        )
        row[f"{name}_won"] = f"{(frame['ours_db'] > frame[f'{name}_db']).sum()} of {len(frame)}"
    return row


def table(rows: Sequence[dict[str, Any]], source: str) -> Table:
    columns = [
        Column("setting", "setting"),
        Column("n", "n"),
        Column("share", "ours_share", "{:.3f}"),
        Column("ours, dB", "ours_db", "{:.1f}", "± {ours_db_ci95:.1f}"),
        Column("worst", "ours_least_db", "{:.1f}"),
    ]
    for name, title in OTHERS.items():
        columns += [
            Column(f"{title}: share", f"{name}_share", "{:.3f}"),
            Column("dB", f"{name}_db", "{:.1f}", f"± {{{name}_db_ci95:.1f}}"),
            Column(
                "ours less it",
                f"{name}_difference_db",
                "{:+.1f}",
                f"{{{name}_difference_db_low:+.1f}} to {{{name}_difference_db_high:+.1f}}",
            ),
            Column("won", f"{name}_won"),
        ]
    return Table(
        "FlowCast where no plan was made for.",
        f"Measured here ({source}). Signal to noise ratio of the latents against a run that computes everything in the "
        "same setting; shares are of that run's FLOPs. Means ± half-width of the 95 % interval; differences are paired "
        "by prompt, with 95 % bootstrap intervals. A plan of so many prompts was made for the setting, by the default "
        "rule; elsewhere it is the one in conf/plans, carried over by time.",
        tuple(columns),
        pd.DataFrame(rows),
        (BOOTSTRAP,),
    )


@command("robustness")
def main(arguments: list[str]) -> int:
    publish, arguments = publishing(arguments)
    chosen = [a.partition("=")[2] for a in arguments if a.partition("=")[0] == "settings"]
    overrides = [argument for argument in arguments if argument.partition("=")[0] != "settings"]
    study = OmegaConf.to_container(OmegaConf.load(CONF / "studies" / "robustness.yaml"))
    check_overrides([f"method={study['method']}", *overrides])
    base = make_job(compose_config([f"method={study['method']}", *overrides]))
    refuse_random_weights(base, "quality says")
    if base.model_name not in study["models"]:
        raise BadInput(f"model={base.model_name} has no settings in conf/studies/robustness.yaml; add some")
    settings = study["models"][base.model_name]
    names = [name.strip() for name in chosen[-1].split(",")] if chosen else list(settings)
    for name in names:
        if name not in settings:
            raise BadInput(f"settings={name!r} is none of {base.model_name}'s; {nearest(name, list(settings))}")
    rows: list[dict[str, Any]] = []
    with model_pool(base) as map_model:
        videos = Videos(map_model)
        for name in names:
            rows += rows_of(name, settings[name], study, overrides, map_model, videos)
    machine = environment.describe(base.device)
    source = (
        f"{base.model_name}, {base.setting_name}; {machine.get('gpu', machine['cpu'])}; seed {base.seed}; {made_by()}; "
        f"weights {weights_id(base)}; {counted(len(rows), 'row')}"
    )
    to = destination(base.output_dir, publish)
    to.save_table(f"{base.model_name}_{base.setting_name}_robustness", table(rows, source))
    return 0
