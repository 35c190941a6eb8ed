"""Head maps: how much every head attends to which frames, measured on a few prompts (``calibrate kv=forcing_kv``).

Vanilla makes the prompts' videos. Wherever a chunk attends to as many frames as any does, the shares of its attention
are taken at evenly spread queries of every layer and head, and their mean is what the file holds. See
flowcache.kv.head_map.

Shape letters: R layers, H heads, F key frames, Q queries, L keys, E channels a head.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from experiments.job.errors import BadInput
from experiments.job.job import Job
from experiments.run.model_pool import Map
from experiments.studies.provenance import made_for
from flowcache.kv.cache import KvCache
from flowcache.method import Method
from flowcache.sampler import sample

NUM_QUERIES = 64  # of a pass, looked at
DIGITS = 5


class AttentionMass:
    """Stands in for a cache's ``attend`` and adds up what it sees.

    Args:
        cache: whose attention to watch.
        tokens_per_frame: of a latent frame.

    Attributes:
        chunk_frames: latent frames of the chunks that attended to most.
    """

    def __init__(self, cache: KvCache, tokens_per_frame: int) -> None:
        self._cache, self._attend, self._frame = cache, cache.attend, tokens_per_frame
        self._sums: dict[int, Tensor] = {}  # by layer, [H, F]
        self._most = self._passes = self.chunk_frames = 0
        cache.attend = self

    def __call__(self, layer: int, query: Tensor, *seen: int | str) -> Tensor:
        out = self._attend(layer, query, *seen)
        frames = self._frames(layer, *seen)
        if len(frames) > self._most:
            self._sums, self._most, self._passes = {}, len(frames), 0
        if len(frames) == self._most:
            self.chunk_frames = query.shape[2] // self._frame
            self._passes += layer == 0
            key, _ = self._cache.read(layer, *seen)
            order = sorted(range(len(frames)), key=frames.__getitem__)
            own = frame_shares(query[0], key[0], len(frames))[:, order]
            self._sums[layer] = self._sums[layer] + own if layer in self._sums else own
        return out

    def _frames(self, layer: int, *seen: int | str) -> list[int]:
        """Latent frames of the keys, as they are read."""
        each = self._cache.tokens_per_chunk // self._frame
        places = self._cache.places_read(layer, *seen)
        return [place * each + frame for place in places for frame in range(each)]

    @property
    def mean(self) -> Tensor:
        """Float32 [R, H, F], on the CPU."""
        return torch.stack([self._sums[layer] for layer in sorted(self._sums)]).cpu() / self._passes


def frame_shares(query: Tensor, key: Tensor, num_frames: int) -> Tensor:
    """Queries [H, Q, E] and keys [H, L, E] of whole frames -> what each frame gets of a head's attention, mean over
    evenly spread queries: float32 [H, F]."""
    places = torch.linspace(0, query.shape[1] - 1, min(NUM_QUERIES, query.shape[1]), device=query.device).long()
    logits = query[:, places].float() @ key.float().transpose(1, 2) / query.shape[-1] ** 0.5
    return logits.softmax(-1).unflatten(-1, (num_frames, -1)).sum(-1).mean(1)


@dataclass(frozen=True)
class Measured:
    """Of one prompt's video: float32 [R, H, F], and the chunk's own frames among F."""

    mass: Tensor
    chunk_frames: int


def measured(job: Job, model: Any, prompt: str) -> Measured:
    """A vanilla run through the cache, watched in its first guidance branch."""
    generation = model.generation(prompt, job.num_frames, Method(), job.seed, **job.generation_options)
    if not generation.able.heads:
        raise BadInput(f"{generation.able.model} cannot keep frames by head; calibrate another model")
    watched = AttentionMass(generation.branches[0].cache, generation.tokens_per_frame)
    for _ in sample(generation):
        pass
    return Measured(watched.mean, watched.chunk_frames)


def head_map(job: Job, map_model: Map) -> dict[str, Any]:
    """The file's content. Prints what it finds."""
    runs = []
    for prompt, run in zip(job.prompts, map_model(measured, job.prompts), strict=True):
        runs.append(run)
        print(f"attention {len(runs)}: {prompt}", flush=True)
    every = torch.stack([run.mass for run in runs])
    mass, spread = every.mean(0), every.std(0, correction=0)
    frames, own = mass.shape[-1], runs[0].chunk_frames
    if frames == own:
        raise BadInput("no chunk attends to another: the video is of one chunk; give setting.num_frames=<more>")
    past = mass[..., :-own].sum(-1)
    print(
        f"{mass.shape[0]} layers of {mass.shape[1]} heads, {frames} frames: {past.mean():.2f} of the attention goes to "
        f"the past, of a head's {past.min():.2f} to {past.max():.2f}; a share differs by {spread.mean():.4f} between "
        "prompts",
        flush=True,
    )
    return {
        "part": "heads",
        **made_for(job),
        "chunk_frames": own,
        "mass": [[[round(share, DIGITS) for share in head] for head in layer] for layer in mass.tolist()],
        "fit": {"spread": round(spread.mean().item(), 6), "largest_spread": round(spread.max().item(), 6)},
    }


def text_of(made: dict[str, Any]) -> str:
    """JSON with a line for every entry, and of the shares for every head's."""
    lines = []
    for key, value in made.items():
        text = json.dumps(value)
        if key == "mass":
            text = "[\n  " + ",\n  ".join("[" + ",\n   ".join(map(json.dumps, layer)) + "]" for layer in value) + "\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
