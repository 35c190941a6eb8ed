"""The full VBench protocol: ``python -m experiments.vbench_full [model=magi] [setting=paper ...] [key=value ...]``.

Makes the videos of conf/experiment/vbench_full.yaml, every prompt of the official package with every seed, then scores
each method in the dimensions whose weights are here (``python -m eval.vbench list``). Finished videos and scores are
kept, so a killed run continues, and a run after more weights have come scores what is new;
``hydra/launcher=<name> tasks=<n>`` shares out the making of videos, as experiments.sweep does. Scores go to
output_dir/vbench/, one JSON a method, the table to output_dir/tables/ (``publish=true``: to results/tables/).
``method=<some>`` takes those methods and vanilla, ``num_prompts=<n>`` the first n prompts; the scores are then named
partial.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from eval.atomic import atomic_path
from eval.errors import MetricUnavailable
from eval.statistics import MIN_RESAMPLED, mean_and_interval
from eval.vbench import environment
from eval.vbench.scoring import VIDEOS_PER_PROMPT, DimensionScore, Scores, score
from eval.vbench.suite import NAMES
from eval.vbench.totals import totals
from experiments.job.errors import BadInput, command
from experiments.job.experiment import jobs_of
from experiments.job.job import Job, refuse_random_weights
from experiments.job.paths import shown
from experiments.job.quoting import quoted
from experiments.job.units import counted
from experiments.records import Record, store_of
from experiments.records.collect import finished, video_frame
from experiments.run.launch import Launcher, launcher_of
from experiments.run.sweep import share_out
from experiments.show.results import BOOTSTRAP, Column, Table, destination, provenance, publishing
from experiments.show.vbench_totals import percentile_ends, prompts_of, resampled

_ENDS = ("", "_low", "_high", "_n", "_wanted")  # of the columns of a method
_TOTALS = {"Quality": "quality", "Semantic": "semantic", "Total": "total"}


@dataclass(frozen=True)
class Entrant:
    """One method under the protocol: a job for each seed, in their order."""

    jobs: tuple[Job, ...]

    @property
    def name(self) -> str:
        return self.jobs[0].method_name

    def records(self) -> dict[str, Record]:
        """Finished records by the name that VBench asks for their video under."""
        return {
            f"{record.prompt}-{index}.mp4": record for index, job in enumerate(self.jobs) for record in finished(job)
        }

    def scores_path(self) -> Path:
        """Named by its videos: other videos, other scores."""
        keys = " ".join(record.key for record in self.records().values())
        return self.jobs[0].output_dir / "vbench" / f"{hashlib.sha256(keys.encode()).hexdigest()[:20]}.json"


def entrants(arguments: list[str]) -> tuple[list[Entrant], dict[str, Any]]:
    """Every method of the experiment file on the package's prompts, vanilla first, and what the file says.

    Raises BadInput where the package is not installed or the arguments are wrong.
    """
    if any(argument.startswith("prompts=") for argument in arguments):
        raise BadInput("the prompts are VBench's own; num_prompts=<n> takes the first n of them")
    try:
        prompts = dict.fromkeys(entry["prompt_en"] for entry in environment.full_info())
    except MetricUnavailable as unavailable:
        raise BadInput(str(unavailable)) from unavailable
    listed = environment.folder() / "prompts.txt"
    with atomic_path(listed) as temporary:
        temporary.write_text("\n".join(prompts) + "\n", encoding="utf-8")
    jobs, experiment = jobs_of("vbench_full", [f"prompts={quoted(str(listed))}", *arguments])
    refuse_random_weights(jobs[0], "VBench says")
    seeds = experiment["seeds"]
    if not isinstance(seeds, int) or not 1 <= seeds <= VIDEOS_PER_PROMPT:
        raise BadInput(f"seeds={seeds!r} must be a whole number from 1 to {VIDEOS_PER_PROMPT}")
    return [Entrant(tuple(replace(job, seed=job.seed + i) for i in range(seeds))) for job in jobs], experiment


def jobs_to_run(entered: list[Entrant]) -> list[Job]:
    """All methods of a seed before the next seed."""
    return [job for of_seed in zip(*(entrant.jobs for entrant in entered), strict=True) for job in of_seed]


def make_videos(entered: list[Entrant], launcher: Launcher | None = None, arguments: Sequence[str] = ()) -> None:
    """Generate what is missing, here or in tasks that the ``arguments`` tell it to; says first how much that is."""
    each = len(entered[0].jobs[0].prompts) * len(entered[0].jobs)
    prompts, seeds = counted(len(entered[0].jobs[0].prompts), "prompt"), counted(len(entered[0].jobs), "seed")
    videos = counted(len(entered) * each, "video")
    print(f"{counted(len(entered), 'method')} x {prompts} x {seeds} = {videos} ({each:,} a method), ", end="")
    share_out(launcher, jobs_to_run(entered), lambda: jobs_to_run(entrants(list(arguments))[0]))


def score_entrant(entrant: Entrant) -> Scores:
    """Score a method's videos in what was not scored yet, saving after every dimension."""
    job, records, path = entrant.jobs[0], entrant.records(), entrant.scores_path()
    store = store_of(job)
    videos = {name: store.preview_path(record.key) for name, record in records.items()}
    scores = Scores(results={} if job.force else _saved(path))
    for name in [name for name in NAMES if name not in scores.results]:
        one = score(
            videos,
            [name],
            mode="vbench_standard",
            device=torch.device(job.device).type,
            partial=True,
            report=lambda text: print(f"{entrant.name}: {text}", flush=True),
        )
        scores.results |= one.results
        scores.not_run |= one.not_run
        _save(path, entrant, scores)
    return scores


def _saved(path: Path) -> dict[str, DimensionScore]:
    try:
        dimensions = json.loads(path.read_text(encoding="utf-8"))["dimensions"]
        return {name: DimensionScore(**result) for name, result in dimensions.items()}
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        return {}


def _save(path: Path, entrant: Entrant, scores: Scores) -> None:
    job = entrant.jobs[0]
    content = {
        "package": environment.package(),
        "model": job.model_name,
        "setting": job.setting_name,
        "method": entrant.name,
        "method_config": job.method.described(),
        "seeds": [job.seed for job in entrant.jobs],
        "videos": {name: record.key for name, record in entrant.records().items()},
        "dimensions": {name: asdict(result) for name, result in scores.results.items()},
        "not_run": scores.not_run,
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def score_frame(scored: dict[str, Scores]) -> pd.DataFrame:
    """One row a dimension, then Quality, Semantic and Total; by method the score, the ends of its 95 % interval over
    prompts (Student's t, of totals by resampling), its videos and those wanted, or why there is none."""
    rows = [{"score": name} for name in (*NAMES, *_TOTALS)]
    by_name = {row["score"]: row for row in rows}
    for method, scores in scored.items():
        for name, result in scores.results.items():
            by_prompt = defaultdict(list)
            for video, value in result.per_video.items():
                by_prompt[video.rpartition("-")[0]].append(value)
            _, half_width = mean_and_interval([float(np.mean(values)) for values in by_prompt.values()])
            ends = (result.mean - half_width, result.mean + half_width)
            values = (result.mean, *ends, len(result.per_video), result.num_expected)
            by_name[name] |= dict(zip((f"{method}{end}" for end in _ENDS), values, strict=True))
        for name in scores.not_run.keys() & by_name.keys():
            by_name[name][f"{method}_reason"] = scores.not_run[name]
        _add_totals(by_name, method, scores)
    return pd.DataFrame(rows)


def _add_totals(by_name: dict[str, dict[str, Any]], method: str, scores: Scores) -> None:
    combined = totals(scores.means, missing_scores=scores.missing_scores, partial=True)
    prompts = prompts_of(scores.results)
    resamples = resampled(scores.results, prompts) if len(prompts) >= MIN_RESAMPLED else {}
    num_videos = len({video for result in scores.results.values() for video in result.per_video})
    for name, field in _TOTALS.items():
        value, row = getattr(combined, field), by_name[name]
        row[method] = value
        if value is None:
            row[f"{method}_reason"] = "no dimension of it has a score"
        else:
            low, high = percentile_ends(resamples[field], len(prompts)) if resamples else (np.nan, np.nan)
            row |= {f"{method}_low": low, f"{method}_high": high, f"{method}_n": num_videos}


def table(scored: dict[str, Scores], title: str, source: str) -> Table:
    """Dimensions down, methods across; what is partial, and why dimensions have no score."""
    named = {
        method: totals(scores.means, missing_scores=scores.missing_scores, partial=True).name
        for method, scores in scored.items()
    }
    partial = "; ".join(f"{method}: {name}" for method, name in named.items() if name != "Total")
    reasons = dict.fromkeys(f"{name}: {why}" for scores in scored.values() for name, why in scores.not_run.items())
    columns = [Column(m, m, "{:.4f}", f"{{{m}_low:.4f}} to {{{m}_high:.4f}}") for m in scored]
    return Table(
        f"{title}.",
        f"Measured here ({source}; {environment.package()}, videos as mp4, crf 18). Raw means of the package "
        "with their 95 % interval over prompts (Student's t), and how many videos; Quality, Semantic and Total are "
        f"normalised as on the leaderboard, with bootstrap intervals. {BOOTSTRAP} temporal_flickering is without the "
        "protocol's filter for videos that stand still.",
        (Column("score", "score"), *columns),
        score_frame(scored).astype(dict.fromkeys(scored, float)),
        (*([f"Not comparable with published totals: {partial}"] if partial else []), *reasons),
    )


@command("vbench_full")
def main(arguments: list[str]) -> int:
    publish, arguments = publishing(arguments)
    launcher, arguments = launcher_of(arguments)
    entered, experiment = entrants(arguments)
    make_videos(entered, launcher, arguments)
    if entered[0].jobs[0].plan:
        return 0
    if launcher is not None:
        print("the same command without launcher and tasks scores the videos")
        return 0
    scored = {entrant.name: score_entrant(entrant) for entrant in entered}
    job = entered[0].jobs[0]
    source = provenance(video_frame(record for entrant in entered for record in entrant.records().values()))
    stem = f"{job.model_name}_{job.setting_name}_vbench"
    destination(job.output_dir, publish).save_table(stem, table(scored, experiment["title"], source))
    print(f"scores of every video are in {shown(job.output_dir / 'vbench')}")
    return 0 if any(scores.results for scores in scored.values()) else 1
