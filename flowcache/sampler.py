"""The one sampling loop: every model and every method runs through it, so that a speed-up is a fair ratio."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from flowcache.clock import SectionClock
from flowcache.forecast.hold import Hold
from flowcache.method import Method
from flowcache.models.base import Generation, VideoModel
from flowcache.progress import Callback, Progress
from flowcache.reuse.base import Decision, ReusePolicy
from flowcache.reuse.distance import ChunkDistance, DistanceMeter
from flowcache.reuse.evidence import EvidenceReader
from flowcache.reuse.fingerprint import FingerprintMeter
from flowcache.reuse.motion import FrameSource, MotionMeter
from flowcache.schedule import Row
from flowcache.trace import Action, Trace, TraceEntry, Work

Observer = Callable[[Row, Decision], bool | None]


class IdlePart(UserWarning):
    """A part of a method had no effect in a generation; also in ``Trace.remarks``."""


@torch.inference_mode()
def sample(
    generation: Generation,
    trace: Trace | None = None,
    clock: SectionClock | None = None,
    observe: Observer | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Run a generation and yield (chunk, latent [C, f, h, w]) as soon as each chunk is finished.

    Args:
        generation: a fresh one; it is used up.
        trace: filled while running.
        clock: sections "transformer", "policy", "scheduler" and "compression" are added to.
        observe: called after every row with the row and its decision; returning False ends the generation there.

    Raises ValueError for a decision about chunks that are not active, and FloatingPointError at the end, where it waits
    for the device, if a chunk was not finite.
    """
    trace = Trace() if trace is None else trace
    clock = SectionClock("cpu") if clock is None else clock
    rows = RowDecisions(generation, trace)
    trace.kv_bytes_allocated, trace.kv_bytes_by_use = generation.kv_bytes_allocated, generation.kv_bytes_by_use
    trace.kv_bits = generation.kv_bits
    finite: dict[int, Tensor] = {}  # by chunk, on the device: nothing waits for it before the end
    with clock("transformer"):
        trace.work += [(-1, work) for work in generation.start(clock)]
    for row in generation.schedule.rows:
        with clock("scheduler"):
            generation.begin_row(row)
        with clock("policy"):
            decision = rows.decide(row)
        with clock("transformer"):
            work = generation.compute(row, decision)
            rows.keep(row, generation.report())
        with clock("scheduler"):
            generation.advance(row, decision)
        if rows.policy.wants_motion(row):
            with clock("policy"):
                rows.done(row)
        rows.record(row, decision, work)
        if observe is not None and observe(row, decision) is False:
            return
        for chunk in row.finished:
            latent = generation.finish(chunk)
            finite[chunk] = latent.isfinite().all()
            yield chunk, latent
    _check_finite(finite)
    trace.kv_unusable_kept = generation.kv_unusable_kept
    trace.forecast_bytes_peak = generation.forecast_bytes_peak
    if trace.kv_unusable_kept:
        warnings.warn(
            f"compression had to keep {trace.kv_unusable_kept} keys that are NaN, infinite or zero: the video cannot "
            "be trusted; check the checkpoint, and the precision that the model runs in",
            stacklevel=2,
        )
    trace.remarks = idle_parts(generation, trace)
    for remark in trace.remarks:
        warnings.warn(remark, IdlePart, stacklevel=2)


def generate(
    model: VideoModel,
    prompt: str | None,
    num_frames: int,
    method: Method,
    seed: int | torch.Generator = 1234,
    trace: Trace | None = None,
    clock: SectionClock | None = None,
    latents: list[Tensor] | None = None,
    prompts: Sequence[tuple[int, str]] | None = None,
    callback: Callback | None = None,
    **options: Any,
) -> Iterator[Tensor]:
    """Generate a video and yield each finished chunk's frames, uint8 [F, H, W, 3], as soon as they are decoded.

    Args:
        model: such as ``flowcache.models.magi.Magi.from_pretrained(path)``.
        prompt: the caption; None where ``prompts`` are given.
        num_frames: frames to generate; the model says which counts it can make.
        method: the caching method, e.g. ``Method(reuse=Chunkwise(threshold=0.015, warmup_steps=5))``.
        seed: of the noise, a number or a generator on the CPU, which moves on. Equal ones give equal noise on every
            device.
        trace, clock: filled while running; the clock also gets "text" and "vae".
        latents: if given, filled while running with each finished chunk's, [C, f, h, w], on the model's device.
        prompts: captions that change on the way, such as [(0, "a cat sleeps"), (40, "the cat wakes up")]: each with the
            frame, of those to generate, from which on it counts. A chunk has one: that of its first frame.
        callback: told after every row how far the generation is (flowcache.progress); returning False ends it there.
        options: the model's own, e.g. ``num_steps``, ``image``, ``prefix_video``.

    Raises ValueError, before any work, for what cannot be made, and for ``prompts`` on a model that takes one.
    """
    if prompts is not None:
        if not model.switches_prompts:
            raise ValueError(
                f"{type(model).__name__} makes a video of one prompt, and prompts=... changes it on the way, which "
                "causal Wan can; give prompt alone"
            )
        options["prompts"] = prompts
    clock = SectionClock("cpu") if clock is None else clock
    with clock("text"):
        generation = model.generation(prompt, num_frames, method, seed, **options)
    observe = None if callback is None else _observer(generation, callback)
    for chunk, latent in sample(generation, trace, clock, observe):
        if latents is not None:
            latents.append(latent)
        with clock("vae"), torch.inference_mode():
            frames = generation.decode(chunk, latent)
        if len(frames):
            yield frames


class RowDecisions:
    """What a generation's policy decides, row by row, and what is written down of it."""

    def __init__(self, generation: Generation, trace: Trace) -> None:
        self.generation, self.trace = generation, trace
        self.policy = generation.method.reuse.fresh()
        meters = _meter(self.policy, generation), self.policy.report, _motion(self.policy, generation)
        self._evidence = EvidenceReader(*meters, generation.parallel)
        self._distances: Mapping[int, ChunkDistance] = {}

    def decide(self, row: Row) -> Decision:
        """Raises ValueError for a decision about chunks that are not active."""
        self._distances, reported = self._evidence.read(row)
        if reported is not None:
            self.policy.observe(*reported)
        decision = self.policy.decide(row, self._distances, self.generation.schedule)
        _check_decision(decision, row, type(self.policy).__name__)
        self._evidence.decided(row, decision.compute)
        return decision

    def keep(self, row: Row, report: tuple[tuple[int, ...], Tensor] | None) -> None:
        """What computing a row showed, see ``Generation.report``."""
        if report is not None:
            self._evidence.keep(row, *report)

    def done(self, row: Row) -> None:
        """Measure how a row that is done moved its tokens, where the policy wants to know."""
        self._evidence.done(row)

    def record(self, row: Row, decision: Decision, work: Sequence[Work]) -> None:
        _record(self.trace, row, decision, self._distances, self.policy.accumulated, work, self.generation)


def idle_parts(generation: Generation, trace: Trace) -> list[str]:
    """What was asked of a finished generation's method and had no effect, a sentence each."""
    method, remarks = generation.method, []
    reuse, forecast = type(method.reuse).__name__, type(method.forecast).__name__
    first_steps = sum(entry.step == 0 for entry in trace.entries)
    skipped = sum(entry.action != "compute" for entry in trace.entries)
    in_part = sum(entry.token_mask for entry in trace.entries)
    repeated = sum(entry.repeated for entry in trace.entries)
    if method.reuse.skips and not skipped and not in_part:
        remarks.append(f"{reuse} skipped nothing: every chunk computed in every step, as vanilla does")
    elif method.reuse.skips and len(trace.entries) - skipped <= first_steps < len(trace.entries):
        remarks.append(f"{reuse} skipped all it could: chunks computed in their first steps alone")
    elif "tokens" in method.reuse.uses and not in_part:
        remarks.append(f"{reuse} never computed a chunk in part: every one as a whole, or not at all")
    if skipped and repeated == skipped and not isinstance(method.forecast, Hold):
        remarks.append(f"{forecast} forecast nothing: every chunk that was skipped took its last output once more")
    elif skipped and method.forecast.borrows and generation.forecast_from < 2:
        remarks.append(f"{forecast} only held: no chunk that was skipped had one before it that changed")
    elif skipped and method.forecast.depth > 1 and generation.forecast_from < 2:
        remarks.append(f"{forecast} only held: no chunk that was skipped had computed twice before")
    if skipped and method.forecast.correction and not generation.forecast_corrections:
        remarks.append(f"{forecast} corrected nothing: no chunk computed again smoothly after a step that it skipped")
    if method.kv.budget is not None and not generation.kv_compressions:
        remarks.append(f"the KV budget of {method.kv.budget} dropped nothing: finished chunks never held more")
    if method.kv.select.by_head and not generation.kv_compressions:
        remarks.append(f"{type(method.kv.select).__name__} dropped nothing: no head was to keep less than there was")
    return remarks


def _observer(generation: Generation, callback: Callback) -> Observer:
    schedule = generation.schedule

    def tell(row: Row, decision: Decision) -> bool | None:
        of_rows = row.index, len(schedule.rows)
        return callback(Progress(*of_rows, decision.compute, row.chunks, row.finished, schedule.num_chunks))

    return tell


def _meter(policy: ReusePolicy, generation: Generation) -> DistanceMeter | FingerprintMeter | None:
    if policy.distance is None:
        return None
    if policy.fingerprint_tokens is not None:
        return FingerprintMeter(generation, policy.distance, policy.fingerprint_tokens)
    return DistanceMeter(generation, policy.distance, generation.measured_chunks, policy.token_distances)


def _motion(policy: ReusePolicy, generation: Generation) -> MotionMeter | None:
    if policy.motion is None:
        return None
    return MotionMeter(cast(FrameSource, generation), policy.motion, policy.motion_across_windows)


def _check_decision(decision: Decision, row: Row, policy: str) -> None:
    for compute in (decision.compute, *decision.branches):
        if tuple(compute) != tuple(chunk for chunk in row.chunks if chunk in compute):
            raise ValueError(
                f"{policy} wants chunks {tuple(compute)} computed in row {row.index}; choose from its active ones, "
                f"oldest first and each once: {row.chunks}"
            )
    for chunk, masks in decision.tokens.items():
        computed = [chunk in decision.of_branch(branch) for branch in range(len(masks))]
        if masks.dtype != torch.bool or masks.device.type != "cpu" or masks.any(1).tolist() != computed:
            raise ValueError(
                f"{policy} wants a part of chunk {chunk} computed in row {row.index}; give bool [branches, tokens] on "
                "the host, with a token in each branch that computes the chunk and none in any other"
            )


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
    kv_bytes = generation.kv_bytes_used
    trace.kv_bytes_used_peak = max(trace.kv_bytes_used_peak, kv_bytes)
    denoise_flops: Counter[int] = Counter()  # a guided model passes a chunk several times
    for item in work:
        if item.kind == "denoise":
            denoise_flops[item.chunk] += item.flops
    for step in row.steps:
        action = _action(step.chunk, decision, generation.method)
        measured = distances.get(step.chunk)
        trace.entries.append(
            TraceEntry(
                row=row.index,
                chunk=step.chunk,
                step=step.step,
                t=step.t,
                action=action,
                distance=None if measured is None else measured.relative,
                cosine=None if measured is None else measured.cosine,
                accumulated=accumulated.get(step.chunk),
                flops=denoise_flops[step.chunk],
                kv_tokens=generation.kv_tokens,
                kv_bytes=kv_bytes,
                token_mask=step.chunk in decision.tokens,
                token_share=decision.share(step.chunk),
                repeated=action == "reuse" and step.chunk in decision.repeat,
            )
        )


def _action(chunk: int, decision: Decision, method: Method) -> Action:
    if chunk in decision.compute:
        return "compute"
    if chunk in decision.held:
        return "held"
    return "reuse" if chunk in decision.repeat or isinstance(method.forecast, Hold) else "forecast"
