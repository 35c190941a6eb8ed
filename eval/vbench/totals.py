"""Quality, Semantic and Total from the raw scores of the dimensions."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from eval.vbench.suite import SUITE, Dimension, dimensions

QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4, 1


@dataclass(frozen=True)
class Totals:
    """Each in [0, 1] for scores within the suite's limits; None where no dimension of its group was scored.

    `missing` names the dimensions that are not in it, `missing_scores` counts the videos that dimensions lack. With
    either it is partial and compares with no published total.
    """

    quality: float | None
    semantic: float | None
    total: float | None
    missing: tuple[str, ...]
    missing_scores: int

    @property
    def name(self) -> str:
        """What a table calls it."""
        lacks = [f"{len(SUITE) - len(self.missing)} of {len(SUITE)} dimensions"] if self.missing else []
        lacks += [f"{self.missing_scores} video scores missing"] if self.missing_scores else []
        return f"Total (partial: {', '.join(lacks)})" if lacks else "Total"


def totals(raw: Mapping[str, float], *, missing_scores: int = 0, partial: bool = False) -> Totals:
    """Combine raw scores as the official leaderboard does (VBench:scripts/cal_final_score.py).

    Every score is scaled to its limits and weighted within Quality or Semantic; Total = (4 Quality + Semantic) / 5.
    The official script counts a dimension that is not there as raw 0. Here that is refused; `partial=True` takes the
    means over the dimensions that are there instead.

    Args:
        raw: mean score by dimension, in the package's own units.
        missing_scores: videos of the protocol that dimensions were not scored on (`Scores.missing_scores`).
        partial: whether dimensions and videos may be missing.

    Raises:
        ValueError: an unknown dimension, a score that is no finite number, or something missing without `partial`.
    """
    dimensions(raw)
    for name, value in raw.items():
        if not math.isfinite(value):
            raise ValueError(f"the score of {name} is {value}; a finite number is needed")
    missing = tuple(dimension.name for dimension in SUITE if dimension.name not in raw)
    if missing and not partial:
        raise ValueError(
            f"a VBench total needs all {len(SUITE)} dimensions and {', '.join(missing)} are missing; score them, or "
            "ask for a partial total"
        )
    if missing_scores and not partial:
        raise ValueError(f"{missing_scores} video scores are missing; score all videos, or ask for a partial total")
    quality, semantic = (_mean((d for d in SUITE if d.group == group), raw) for group in ("quality", "semantic"))
    total = None
    if quality is not None and semantic is not None:
        total = (QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic) / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)
    return Totals(quality, semantic, total, missing, missing_scores)


def normalised(dimension: Dimension, raw: float) -> float:
    """A raw score scaled so that the suite's lowest is 0 and its highest 1; not clipped, as in the official code."""
    return (raw - dimension.lowest) / (dimension.highest - dimension.lowest)


def _mean(group: Iterable[Dimension], raw: Mapping[str, float]) -> float | None:
    """Weighted mean of normalised scores; None without any."""
    scored = [dimension for dimension in group if dimension.name in raw]
    if not scored:
        return None
    weights = sum(dimension.weight for dimension in scored)
    return sum(dimension.weight * normalised(dimension, raw[dimension.name]) for dimension in scored) / weights
