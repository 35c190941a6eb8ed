"""The most memory that a job's video takes, from shapes: which KV policy fits into how much."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig

from experiments.job.errors import BadInput
from experiments.job.job import Job
from experiments.job.model import find_checkpoint
from experiments.run.plan import activation_bytes, decode_bytes, generation_of
from flowcache.checkpoints import verify
from flowcache.models.checkpoint import CheckpointError
from flowcache.models.offload import ROOM_GIB

_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "MB": 10**6, "GB": 10**9}
_FORM = re.compile(rf"(\d+(?:\.\d+)?) ?({'|'.join(_UNITS)})")
TEXT_ENCODER = "text encoder"


@dataclass(frozen=True)
class Memory:
    """Bytes that one video takes at most.

    Attributes:
        weights: by network; without a text encoder that leaves the device before the first row.
        kv: that the KV caches allocate there; of a video that several GPUs share out, on one of them.
        working: activations of the fullest rows, or what decoding a chunk takes, whichever is more.
        text_leaves: whether the text encoder leaves.
        host: that the KV caches allocate in host memory instead.
    """

    weights: dict[str, int]
    kv: int
    working: int
    text_leaves: bool
    host: int = 0

    @property
    def peak(self) -> int:
        return sum(self.weights.values()) + self.kv + self.working

    @property
    def told(self) -> str:
        parts = ", ".join(f"{name} {amount(size)}" for name, size in self.weights.items())
        leaves = "; the text encoder waits in host memory" if self.text_leaves else ""
        return (
            f"{amount(self.peak)}: {parts}, KV cache {amount(self.kv)}, activations or decoding {amount(self.working)}"
            f"{leaves}"
        )


def amount(num_bytes: int) -> str:
    """'12.3 GiB', or MiB below one."""
    unit = "GiB" if num_bytes >= 2**30 else "MiB"
    return f"{num_bytes / _UNITS[unit]:.3g} {unit}"


def bytes_of(text: str) -> int:
    """'24GiB' in bytes. Raises BadInput."""
    found = _FORM.fullmatch(text.strip())
    if not found or not float(found[1]):
        raise BadInput(f"memory={text} is not understood; write memory=24GiB, 800MiB or such")
    return int(float(found[1]) * _UNITS[found[2]])


def model_on_meta(config: DictConfig) -> Any:
    """The job's model without weights. Raises BadInput for a checkpoint that is missing or wrong."""
    options = {key: value for key, value in config.model.on_meta.items() if key != "_target_"}
    try:
        return get_object(config.model.on_meta["_target_"])(**options, checkpoint=find_checkpoint(config))
    except (CheckpointError, FileNotFoundError, ValueError) as error:
        raise BadInput(str(error)) from error


def text_encoder_bytes(checkpoint: Path) -> int:
    """As it lies in the files; 0 where there is none."""
    return sum(part.nbytes for part in verify(checkpoint).parts if part.name == TEXT_ENCODER)


def memory_of(job: Job, model: Any, text_bytes: int, limit: int | None, on_gpu: bool) -> Memory:
    """Of a job on its model without weights.

    Args:
        text_bytes: of the text encoder, which leaves a GPU of less than 64 GiB by itself (flowcache.models.offload).
        limit: of the device, in bytes.
        on_gpu: whether the device is one.

    Raises BadInput for what the model refuses.
    """
    try:
        generation = generation_of(job, model)
    except (CheckpointError, ValueError) as error:
        raise BadInput(str(error)) from error
    by_use, cards = generation.kv_bytes_by_use, generation.parallel.world
    host = by_use.get("host", 0) // cards
    kv = generation.kv_bytes_allocated // cards - host
    working = max(activation_bytes(generation, job), decode_bytes(model, job))
    leaves = on_gpu and limit is not None and limit < ROOM_GIB * 2**30
    weights = {name: size for name, size in model.weights_bytes.items() if name != TEXT_ENCODER}
    if not leaves and text_bytes:
        weights[TEXT_ENCODER] = text_bytes
    return Memory(weights, kv, working, leaves, host)
