"""VBench totals of methods, from the scores that ``python -m experiments.vbench_full`` keeps."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.statistics import MIN_RESAMPLED, NUM_RESAMPLES, SEED
from eval.vbench.scoring import DimensionScore, Scores
from eval.vbench.totals import totals

HOW = "python -m experiments.vbench_full scores them"
_NO_SCORES = f"no scores of these videos; {HOW}"
_BATCH = 500  # resamples at once: bounds the memory to a few MB


@dataclass(frozen=True)
class VBenchTotal:
    """One method's Total in per cent, or why it has none. ``resamples``: of its prompts [R], for intervals."""

    percent: float | None
    num_videos: int = 0
    prompts: tuple[str, ...] = ()
    resamples: np.ndarray | None = None
    reason: str = ""

    def interval(self) -> tuple[float, float]:
        """Ends of the 95 % bootstrap interval over prompts; nan for few."""
        return percentile_ends(self.resamples, len(self.prompts))

    def less(self, other: VBenchTotal) -> tuple[float, float, float]:
        """Difference in points and the ends of its 95 % interval. Raises ValueError where their prompts differ."""
        if self.prompts != other.prompts:
            raise ValueError("totals over different prompts are not paired; score the same prompts of both")
        return (self.percent - other.percent, *percentile_ends(self.resamples - other.resamples, len(self.prompts)))


def percentile_ends(resamples: np.ndarray, num_prompts: int) -> tuple[float, float]:
    """Of a 95 % interval; nan where the prompts are too few to be resampled."""
    if num_prompts < MIN_RESAMPLED:
        return float("nan"), float("nan")
    low, high = np.percentile(resamples, (2.5, 97.5))
    return float(low), float(high)


def read_total(output_dir: Path, keys: Iterable[str]) -> VBenchTotal:
    """The Total over videos with some of these records' keys, the most that were scored together.

    One that lacks dimensions or videos is none, and says so.
    """
    known = set(keys)
    contents = [_read(path) for path in sorted((output_dir / "vbench").glob("*.json"))]
    ours = [c for c in contents if c is not None and c["videos"] and known.issuperset(c["videos"].values())]
    if not ours:
        return VBenchTotal(None, reason=_NO_SCORES)
    content = max(ours, key=lambda c: len(c["videos"]))
    results = {name: DimensionScore(**result) for name, result in content["dimensions"].items()}
    scores = Scores(results, content["not_run"])
    combined = totals(scores.means, missing_scores=scores.missing_scores, partial=True)
    if combined.name != "Total":
        return VBenchTotal(None, reason=f"{combined.name}; {HOW}")
    videos = {video for result in results.values() for video in result.per_video}
    prompts = prompts_of(results)
    return VBenchTotal(100 * combined.total, len(videos), prompts, 100 * resampled(results, prompts)["total"])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if {"videos", "dimensions", "not_run"} <= content.keys() else None
    except json.JSONDecodeError:
        return None


def prompts_of(results: dict[str, DimensionScore]) -> tuple[str, ...]:
    """Of all videos that some dimension was scored on."""
    return tuple(sorted({_prompt(video) for result in results.values() for video in result.per_video}))


def _prompt(video: str) -> str:
    """Of the file name under which VBench knows a video."""
    return video.rpartition("-")[0]


def resampled(results: dict[str, DimensionScore], prompts: tuple[str, ...]) -> dict[str, np.ndarray]:
    """By field of ``eval.vbench.totals.Totals`` that there is, its value in benchmarks with prompts drawn anew [R].

    Every dimension counts those of its own prompts that were drawn.
    """
    by_prompt: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, result in results.items():
        for video, value in result.per_video.items():
            by_prompt[name][_prompt(video)].append(value)
    means = np.array([[np.mean(by_prompt[name].get(prompt, np.nan)) for prompt in prompts] for name in results])
    scored = ~np.isnan(means)  # [dimensions, prompts]
    # Totals are linear in the scores: their values [totals] without any, and what each adds [dimensions, totals].
    zeros = dict.fromkeys(results, 0.0)
    without = totals(zeros, partial=True)
    fields = [field for field in ("quality", "semantic", "total") if getattr(without, field) is not None]

    def combined(scores: dict[str, float]) -> np.ndarray:
        return np.array([getattr(totals(scores, partial=True), field) for field in fields])

    none = combined(zeros)
    added = np.array([combined(zeros | {name: 1.0}) - none for name in results])
    rng = np.random.default_rng(SEED)
    drawn: list[np.ndarray] = []
    while len(drawn) < NUM_RESAMPLES:
        counts = rng.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), _BATCH)
        with np.errstate(invalid="ignore"):  # a dimension of which no prompt was drawn: drawn anew
            raw = (counts @ np.nan_to_num(means).T) / (counts @ scored.T)
        drawn += list(none + raw[~np.isnan(raw).any(axis=1)] @ added)
    return dict(zip(fields, np.array(drawn[:NUM_RESAMPLES]).T, strict=True))
