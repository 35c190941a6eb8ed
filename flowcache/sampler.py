"""The one sampling loop: every model and every method runs through it, so that a speed-up is a fair ratio."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowcache.clock import SectionClock
from flowcache.distance import ChunkDistance, DistanceMeter
from flowcache.method import MethodConfig
from flowcache.models.base import Generation, VideoModel
from flowcache.policy import Decision
from flowcache.schedule import Row
from flowcache.trace import Trace, TraceEntry, Work

Observer = Callable[[Row, Decision], None]


@torch.inference_mode()
def sample(
    generation: Generation,
    method: MethodConfig,
    trace: Trace | None = None,
    clock: SectionClock | None = None,
    observe: Observer | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Run a generation and yield (chunk, latent [C, f, h, w]) as soon as each chunk is finished.

    Args:
        generation: a fresh one; it is used up.
        method: makes the policy; the generation must have been made with the same method.
        trace: filled while running.
        clock: sections "transformer", "policy", "scheduler" and "compression" are added to.
        observe: called after every row with the row and its decision, for probes.

    Raises FloatingPointError at the end, where it waits for the device, if a chunk was not finite.
    """
    trace = Trace() if trace is None else trace
    clock = SectionClock("cpu") if clock is None else clock
    policy = method.policy()
    meter = None if policy.distance is None else DistanceMeter(generation, policy.distance, generation.measured_chunks)
    trace.kv_bytes_allocated = generation.kv_bytes_allocated
    finite: dict[int, Tensor] = {}  # by chunk, on the device: nothing waits for it before the end
    with clock("transformer"):
        trace.work += [(-1, work) for work in generation.start(clock)]
    for row in generation.schedule.rows:
        with clock("scheduler"):
            generation.begin_row(row)
        with clock("policy"):
            distances = {} if meter is None else meter.measure(row)
            decision = policy.decide(row, distances, generation.schedule)
        with clock("transformer"):
            work = generation.compute(row, decision)
        with clock("scheduler"):
            generation.advance(row, decision)
        _record(trace, row, decision, distances, policy.accumulated, work, generation)
        if observe is not None:
            observe(row, decision)
        for chunk in row.finished:
            latent = generation.finish(chunk)
            finite[chunk] = latent.isfinite().all()
            yield chunk, latent
    _check_finite(finite)
    trace.kv_unusable_kept = generation.kv_unusable_kept
    if trace.kv_unusable_kept:
        warnings.warn(
            f"compression had to keep {trace.kv_unusable_kept} keys that are NaN, infinite or zero: the video cannot "
            "be trusted; check the checkpoint, and the precision that the model runs in",
            stacklevel=2,
        )


def generate(
    model: VideoModel,
    prompt: str,
    num_frames: int,
    method: MethodConfig,
    seed: int = 1234,
    trace: Trace | None = None,
    clock: SectionClock | None = None,
    **options: Any,
) -> Iterator[Tensor]:
    """Generate a video and yield each finished chunk's frames, uint8 [F, H, W, 3], as soon as they are decoded.

    Args:
        model: such as ``flowcache.models.magi.Magi.from_pretrained(path)``.
        prompt: the caption.
        num_frames: frames to generate; the model says which counts it can make.
        method: the caching method, e.g. ``FlowCacheConfig(threshold=0.015, warmup_steps=5)``.
        seed: of the noise. Equal seeds give equal noise on every device.
        trace, clock: filled while running; the clock also gets "text" and "vae".
        options: the model's own, e.g. ``num_steps``, ``image``, ``prefix_video``.
    """
    clock = SectionClock("cpu") if clock is None else clock
    with clock("text"):
        generation = model.generation(prompt, num_frames, method, seed, **options)
    for chunk, latent in sample(generation, method, trace, clock):
        with clock("vae"), torch.inference_mode():
            frames = generation.decode(chunk, latent)
        if len(frames):
            yield frames


def _check_finite(finite: Mapping[int, Tensor]) -> None:
    broken = [chunk for chunk, whole in finite.items() if not whole.is_meta and not whole]
    if broken:
        raise FloatingPointError(
            f"the latent of chunk {broken[0]} holds NaN or infinity, so that there is no video; check the checkpoint, "
            "and the precision that the model runs in"
        )


def _record(
    trace: Trace,
    row: Row,
    decision: Decision,
    distances: Mapping[int, ChunkDistance],
    accumulated: Mapping[int, float],
    work: Sequence[Work],
    generation: Generation,
) -> None:
    trace.work += [(row.index, item) for item in work]
    trace.kv_bytes_used_peak = max(trace.kv_bytes_used_peak, generation.kv_bytes_used)
    denoise_flops: Counter[int] = Counter()  # a guided model passes a chunk several times
    for item in work:
        if item.kind == "denoise":
            denoise_flops[item.chunk] += item.flops
    for step in row.steps:
        computed, held = step.chunk in decision.compute, step.chunk in decision.held
        measured = distances.get(step.chunk)
        trace.entries.append(
            TraceEntry(
                row=row.index,
                chunk=step.chunk,
                step=step.step,
                t=step.t,
                action="compute" if computed else "held" if held else "reuse",
                distance=None if measured is None else measured.relative,
                accumulated=accumulated.get(step.chunk),
                flops=denoise_flops[step.chunk],
                kv_tokens=generation.kv_tokens,
            )
        )
