"""Latents kept beside a video for the metric that compares them, and that metric: one safetensors file a video."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from eval.atomic import atomic_path
from eval.latent_error import latent_snr_db
from experiments.job.errors import VideoLost
from experiments.job.job import Job
from experiments.records import Record, RecordStore, sha256

LATENT_SNR = "latent_snr"
_TENSOR = "latents"  # in the file


def keeps_latents(job: Job) -> bool:
    """Whether the job asks for the metric, which random weights have none of."""
    return LATENT_SNR in job.metrics and job.random_weights is None


def has_latents(store: RecordStore, record: Record) -> bool:
    """Whether a finished video was made with its latents kept."""
    return store.latents_path(record.key).name in record.artifacts


def write_latents(path: Path, latents: Tensor) -> None:
    """Float32 [C, F, h, w], whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(save({_TENSOR: latents.float().contiguous()}))


def read_latents(store: RecordStore, record: Record) -> Tensor | None:
    """A finished video's, [C, F, h, w]; None if it was made without. Raises VideoLost for a file that is damaged."""
    if not has_latents(store, record):
        return None
    path = store.latents_path(record.key)
    if not path.is_file() or sha256(path) != record.artifacts[path.name]:
        raise VideoLost(f"{path} is missing, or is not what was written; force=true makes the video again")
    return load(path.read_bytes())[_TENSOR]


def latent_snr(
    latents: Tensor | None, reference: Tensor | None, baseline: str
) -> tuple[dict[str, float | None], dict[str, str]]:
    """The metric by its name, in dB, or None and the reason; ``reference`` are the latents of the ``baseline``'s
    video."""
    if latents is None:
        return {LATENT_SNR: None}, {LATENT_SNR: "made without latents; force=true makes it again"}
    if reference is None:
        reason = f"{baseline}'s video was made without latents; force=true makes both again"
        return {LATENT_SNR: None}, {LATENT_SNR: reason}
    return {LATENT_SNR: latent_snr_db(latents, reference)}, {}
