"""Figures from records: ``python -m experiments.figures [model=magi] [setting=embedded] [output_dir=outputs]``.

reuse_curve and warmup_sweep (with their points as a table), pareto, reuse_map, frames, kv_memory;
``show=pareto,frames`` makes those alone. One whose records are not there is left out, and it is said how to make them;
the exit code is 2 if all are. L1_rel has its own command, which runs the model. ``experiment=placement`` makes the
curves of that experiment file alone, and ``experiment=distilled`` the one figure of what methods save over step counts
and models (``embedded_distilled``; with ``model=magi`` of that one alone, ``magi_embedded_distilled``). Written to
output_dir/figures/ (and output_dir/tables/); ``publish=true`` writes them to results/ instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd
from matplotlib.figure import Figure

from eval.video_io import read_lossless
from experiments.job.cli import check_overrides, compose_config
from experiments.job.errors import BadInput, command
from experiments.job.experiment import experiment_of, jobs_of, read_experiment
from experiments.job.job import Job, make_job
from experiments.job.names import nearest
from experiments.records import Record, RecordStore, store_of
from experiments.records.collect import at_defaults, collect, finished, flat, read_trace, video_frame
from experiments.show import motion_split
from experiments.show.attention import FLAG, another_video, other_baseline
from experiments.show.frame_strips import draw_frames
from experiments.show.long_video import draw_memory, kv_frame
from experiments.show.methods import found_methods
from experiments.show.noise_floor import noise_floor
from experiments.show.pareto import draw_pareto, pareto_points
from experiments.show.results import PUBLISHED, Destination, destination, drawn_from, provenance, publishing
from experiments.show.reuse_curve import (
    NO_VIDEOS,
    Curves,
    at_equal_compute,
    curves_of,
    draw_reuse_curve,
    draw_warmup_sweep,
    reuse_points,
    reuse_videos,
    tables,
)
from experiments.show.reuse_map import draw_reuse_map
from experiments.show.savings import Savings, draw_savings, saved, table, videos_of
from experiments.show.style import CURVE


@dataclass(frozen=True)
class Subject:
    """What the figures are of, a job's model and setting, the command's arguments, and where they are written to."""

    job: Job
    arguments: tuple[str, ...]
    to: Destination

    @cached_property
    def videos(self) -> pd.DataFrame:
        """The finished ones. Raises BadInput if there are none, which leaves out only the figures that need them."""
        return collect(self.job)

    @property
    def store(self) -> RecordStore:
        return store_of(self.job)

    @property
    def name(self) -> str:
        return f"{self.job.model_name}, {self.job.setting_name}"

    @property
    def stem(self) -> str:
        """Of its files' names."""
        return f"{self.job.model_name}_{self.job.setting_name}"

    def save(self, figure: Figure, stem: str, videos: pd.DataFrame) -> None:
        """Of these videos."""
        self.to.save_figure(figure, f"{self.stem}_{stem}", drawn_from(self.name, videos))

    def takes(self) -> dict[str, Record]:
        """By method, the record of the job's first prompt at default options, of those whose files are there.

        Raises BadInput without the baseline's, or without any other.
        """
        found: dict[str, Record] = {}
        prompt = self.job.prompts[0]
        for name in found_methods(self.videos, self.job):
            mine = at_defaults(self.videos, self.job, name)
            for key in mine.loc[(mine["prompt"] == prompt) & (mine["seed"] == self.job.seed), "key"]:
                record = self.store.find(key)
                if record is not None and self.store.trace_path(key).is_file():
                    found[name] = record
        baseline = self.job.baseline
        if baseline not in found or len(found) < 2:
            raise BadInput(
                f"no videos of {prompt!r} by {baseline} and a method with its defaults; make them with "
                f"python run.py -m model={self.job.model_name} method={baseline},flowcache_fast"
            )
        return found


@dataclass(frozen=True)
class Reuse:
    """What the reuse curve and the Pareto figure are of: the subject with the baseline that the experiment file names
    for its model, the videos compared, what is left out of them, and what the file says of the curves."""

    subject: Subject
    videos: pd.DataFrame
    notes: list[str]
    curves: Curves

    @property
    def baseline(self) -> str:
        return self.subject.job.baseline

    def floor_db(self, quality: str) -> float | None:
        """What rounding alone leaves of the baseline's video, where that was measured."""
        job, folders = self.subject.job, (self.subject.to.folder, PUBLISHED)
        told = job.model_name, job.setting_name, self.baseline, self.videos["weights"].unique()
        return noise_floor(folders, *told, quality)


def reuse_of(subject: Subject) -> Reuse:
    """Of the reuse curve. Raises BadInput where there are no videos of it."""
    return next(reuses_of(subject, CURVE))


def reuses_of(subject: Subject, name: str) -> Iterator[Reuse]:
    """Of an experiment that has curves, one for each quality that its file lists. Raises BadInput where there are no
    videos of it."""
    own = [a for a in subject.arguments if not a.startswith(("method=", "prompts=", "num_prompts="))]
    jobs, experiment = jobs_of(name, [*own, f"output_dir={subject.job.output_dir}", "num_prompts=1"])
    if "curves" not in experiment:
        raise BadInput(f"experiment {name} has no curves: its file says nothing under curves")
    against_baseline = replace(subject, job=replace(subject.job, baseline=experiment["baseline"]))
    try:
        found = against_baseline.videos
    except BadInput as error:
        raise BadInput(f"{NO_VIDEOS}{name} model={subject.job.model_name}") from error
    for curves in curves_of(experiment):
        videos, notes = reuse_videos(found, against_baseline.job, jobs, curves, name)
        yield Reuse(against_baseline, videos, notes, curves)


def save_reuse_curve(subject: Subject) -> None:
    reuse = reuse_of(subject)
    points = save_curve(subject, reuse, CURVE)
    if points["line"].notna().any():
        figure = draw_warmup_sweep(points, reuse.curves, reuse.baseline, subject.name)
        subject.save(figure, "warmup_sweep", reuse.videos)


def save_curve(subject: Subject, reuse: Reuse, name: str) -> pd.DataFrame:
    """The figure and the tables of one quality, under the experiment's name; gives the points."""
    curves = reuse.curves
    points = reuse_points(reuse.videos, curves.quality)
    source = f"{subject.name}; {provenance(reuse.videos)}"
    stem = name if curves.quality == "psnr" else f"{name}_{curves.quality}"
    compared = at_equal_compute(reuse.videos, curves)
    whole = f"{subject.stem}_{stem}"
    subject.to.save_table(whole, *tables(points, compared, curves, reuse.baseline, source, reuse.notes))
    if curves.by_motion and len(split := motion_split.by_motion(reuse.videos, curves)):
        subject.to.save_table(f"{whole}_motion", motion_split.table(split, curves, reuse.baseline, source))
    figure = draw_reuse_curve(points, curves, reuse.baseline, subject.name, reuse.floor_db(curves.quality))
    subject.save(figure, stem, reuse.videos)
    return points


def save_pareto(subject: Subject) -> None:
    reuse = reuse_of(subject)
    videos = reuse.subject.videos
    same = (videos["method"] == reuse.baseline) & videos["prompt"].isin(reuse.videos["prompt"])
    baseline_flops = videos.loc[same, "flops"].mean()
    points, floor_db = pareto_points(reuse.videos), reuse.floor_db("psnr")
    figure = draw_pareto(points, reuse.baseline, baseline_flops, subject.name, floor_db)
    subject.save(figure, "pareto", reuse.videos)


def save_reuse_map(subject: Subject) -> None:
    found = subject.takes()
    traces = {name: read_trace(subject.store, record) for name, record in found.items()}
    figure = draw_reuse_map(traces, f"{subject.job.prompts[0]!r} ({subject.name})")
    subject.save(figure, "reuse_map", video_frame(found.values()))


def save_frames(subject: Subject) -> None:
    found = subject.takes()
    frames = {name: read_lossless(subject.store.video_path(record.key)) for name, record in found.items()}
    baseline = subject.job.baseline
    original, num_chunks = frames.pop(baseline), len(found[baseline].chunk_latency_s)
    others = {name for name in frames if another_video(subject.job, flat(found[name].method_config))}
    labels = {
        name: f"{name}{f' {FLAG}' * (name in others)}\n{found[name].flops / found[name].baseline_flops:.0%} of compute"
        for name in frames
    }
    videos = {labels[name]: video for name, video in frames.items()}
    prompt = f"{subject.job.prompts[0]!r} ({subject.name})"
    if others:
        prompt += f". {FLAG} another video from the start; baseline={other_baseline(subject.job)} shows caching alone"
    figure = draw_frames(original, videos, num_chunks, prompt, baseline)
    subject.save(figure, "frames", video_frame(found.values()))


def save_kv_memory(subject: Subject) -> None:
    jobs, _ = jobs_of("long_video", list(subject.arguments))
    figure = draw_memory(kv_frame(jobs), subject.name)
    subject.save(figure, "kv_memory", video_frame(record for job in jobs for record in finished(job)))


def save_savings(subject: Subject, name: str, savings: Savings) -> None:
    """One figure and one table of all of the experiment's models that have videos, on purpose, or of the one that the
    arguments name, whose name the files have then. Raises BadInput where there are none."""
    named = [a.partition("=")[2] for a in subject.arguments if a.startswith("model=")]
    own = [a for a in subject.arguments if not a.startswith(("method=", "model=", "prompts=", "num_prompts="))]
    found = []
    for model in named or savings.families:
        jobs, experiment = jobs_of(name, [*own, f"model={model}", "num_prompts=1"])
        try:
            found.append(videos_of(jobs, Savings(**experiment["savings"])))
        except BadInput as missing:
            again = f"python -m experiments.sweep experiment={name} model={model}"
            print(f"figures: without {model}: {missing}; make them with {again}", file=sys.stderr)
    if not found:
        raise BadInput(f"{NO_VIDEOS}{name} model={savings.families[0]}")
    videos = pd.concat(found, ignore_index=True)
    rows = saved(videos, savings)
    source = f"{subject.job.setting_name}; {provenance(videos)}"
    stem = "_".join([*named[-1:], subject.job.setting_name, name])
    subject.to.save_table(stem, table(rows, savings, source))
    subject.to.save_figure(draw_savings(rows, savings), stem, drawn_from(subject.job.setting_name, videos))


FIGURES: dict[str, Callable[[Subject], None]] = {
    "reuse_curve": save_reuse_curve,
    "pareto": save_pareto,
    "reuse_map": save_reuse_map,
    "frames": save_frames,
    "kv_memory": save_kv_memory,
}


def shown_of(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The figures that ``show=`` names, all without it, and the other arguments. Raises BadInput for an unknown one."""
    asked = [argument.partition("=")[2] for argument in arguments if argument.startswith("show=")]
    names = list(dict.fromkeys(asked[-1].split(","))) if asked else list(FIGURES)
    for name in names:
        if name not in FIGURES:
            raise BadInput(f"show={asked[-1]}: {name!r} is no figure of this command; {nearest(name, list(FIGURES))}")
    return names, [argument for argument in arguments if not argument.startswith("show=")]


@command("figures")
def main(arguments: list[str]) -> int:
    publish, arguments = publishing(arguments)
    shown, arguments = shown_of(arguments)
    named = any(argument.startswith("experiment=") for argument in arguments)
    name, arguments = experiment_of(arguments)
    check_overrides(arguments)
    job = make_job(compose_config(arguments))
    subject = Subject(job, tuple(arguments), destination(job.output_dir, publish))
    if named:
        if (experiment := read_experiment(name, arguments)).get("savings"):
            save_savings(subject, name, Savings(**experiment["savings"]))
            return 0
        for reuse in reuses_of(subject, name):
            save_curve(subject, reuse, name)
        return 0
    num_missing = 0
    for name in shown:
        try:
            FIGURES[name](subject)
        except BadInput as missing:
            print(f"figures: no {name}: {missing}", file=sys.stderr)
            num_missing += 1
    return 2 if num_missing == len(shown) else 0
