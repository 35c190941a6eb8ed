"""(c) diffusers' own SkyReels-V2 pipeline beside our vanilla, on the same weights: seconds a row.

Sampled: one window of the setting, all its frames denoised side by side (``ar_step`` 0, bidirectional), a few steps,
the first not counted. Every row of a window takes the same, the whole window in both guidance branches, whatever its
times.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from eval.latency import Spread
from experiments.benchmarks.gpu.subject import Subject, inputs, wait
from experiments.job.job import Job
from flowcache.method import VANILLA
from flowcache.sampler import sample

STEPS = 5


def beside_diffusers(subject: Subject) -> dict[str, Any]:
    """Both sides' seconds a row; the pipeline's include its solvers, one a latent frame, as ours include ours."""
    job = subject.job()
    model = job.load_model()
    sampling = model.sampling.replaced({**job.generation_options, "num_steps": STEPS, "ar_step": 0})
    options = {"num_steps": STEPS, "ar_step": 0}
    generation = model.generation(num_frames=sampling.base_num_frames, method=VANILLA, **inputs(job, **options))
    ours = [wait(job.device)]
    for _ in sample(generation, observe=lambda *_: ours.append(wait(job.device))):
        pass
    features = [model._encode(prompt) for prompt in (job.prompts[0], "")]
    theirs = _pipeline_marks(job, model.network.transformer, sampling, features)
    return {
        "ours_row_s": asdict(_rows(ours)),
        "diffusers_row_s": asdict(_rows(theirs)),
        "runs": STEPS - 1,
        "frames": sampling.base_num_frames,
    }


@torch.inference_mode()
def _pipeline_marks(job: Job, transformer: torch.nn.Module, sampling: Any, features: list[Tensor]) -> list[float]:
    """When the pipeline's rows ended."""
    from diffusers import SkyReelsV2DiffusionForcingPipeline, UniPCMultistepScheduler  # seconds, and one case needs it

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=sampling.shift
    )
    pipeline = SkyReelsV2DiffusionForcingPipeline(None, None, transformer, None, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    marks = [time.perf_counter()]

    def mark(pipeline: Any, step: int, time_now: Any, kept: dict[str, Any]) -> dict[str, Any]:
        marks.append(wait(job.device))
        return kept

    pipeline(
        prompt=None,
        height=sampling.height,
        width=sampling.width,
        num_frames=sampling.base_num_frames,
        num_inference_steps=STEPS,
        guidance_scale=sampling.guidance_scale,
        prompt_embeds=features[0],
        negative_prompt_embeds=features[1],
        output_type="latent",
        fps=sampling.fps,
        callback_on_step_end=mark,
    )
    return marks


def _rows(marks: list[float]) -> Spread:
    """Of the times between marks, without the first."""
    return Spread.of([after - before for before, after in pairwise(marks[1:])])
