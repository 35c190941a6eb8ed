"""What a calibration was made of, as its file says it."""

from __future__ import annotations

from typing import Any

from experiments.job.job import Job
from experiments.records.weights import weights_id


def made_for(job: Job) -> dict[str, Any]:
    """Model, setting, weights, options of the generation, prompts and seed."""
    return {
        "model": job.model_name,
        "setting": job.setting_name,
        "weights": weights_id(job),
        "options": {"num_frames": job.num_frames, **job.generation_options},
        "prompts": list(job.prompts),
        "seed": job.seed,
    }
