"""Where a video is compared with one that is another from the start: one's chunks see later chunks, the other's do not.

SkyReels-V2's vanilla is bidirectional, and what goes through the KV cache is block-causal: between the two PSNR is some
20 dB whatever is reused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from experiments.job.compose import composed, named_method
from experiments.job.job import Job
from experiments.records.collect import described

AS_PUBLISHED = "vanilla"
FLAG = "†"  # beside a figure that such a comparison gave


def another_video(job: Job, options: Mapping[str, Any]) -> bool:
    """Whether a method's chunks see what the baseline's of its job do not, or the other way round.

    Args:
        options: the method's, by dotted name.
    """
    if causal_baseline(job.model_name) is None:
        return False
    published = _attention(_baseline_options(job, AS_PUBLISHED))
    return (_attention(options) == published) != (_attention(_baseline_options(job, job.baseline)) == published)


def told_another_video(job: Job) -> str:
    """What such a comparison means, and what to compare with instead."""
    sees = "see later chunks too" if job.baseline == AS_PUBLISHED else "see no later chunks"
    return (
        f"another video from the start, for {job.baseline}'s chunks {sees}: PSNR, SSIM and LPIPS to it say how far the "
        f"two kinds of attention are apart, not what caching costs. baseline={other_baseline(job)} shows that"
    )


def other_baseline(job: Job) -> str:
    """That the method sees as much as."""
    return causal_baseline(job.model_name) if job.baseline == AS_PUBLISHED else AS_PUBLISHED


@cache
def causal_baseline(model: str) -> str | None:
    """The baseline whose chunks see no later ones, of a model whose vanilla's do (conf/model)."""
    return composed([f"model={model}"]).model.causal_baseline


def _baseline_options(job: Job, name: str) -> dict[str, Any]:
    return described(replace(job, method=named_method(name, job.model_name, job.setting_name)[0]))


def _attention(options: Mapping[str, Any]) -> Any:
    return next((value for name, value in options.items() if name.rpartition(".")[2] == "attention"), None)
