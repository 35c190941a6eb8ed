"""One MAGI-1 video in the making: latents, captions, guidance and the velocities of each row.

Shape letters: C latent channels, f x h x w latent frames, rows and columns of the whole video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from flowcache.clock import SectionClock
from flowcache.kv.cache import KvCache
from flowcache.method import Method
from flowcache.models.capabilities import Capabilities, unknown_distance
from flowcache.models.chunk_tokens import Subset, latent_mask, latent_tokens
from flowcache.models.frames import as_uint8
from flowcache.models.generation import CacheShape, CachingGeneration
from flowcache.models.magi.attention import CaptionKv, Member
from flowcache.models.magi.config import TEMPORAL_FACTOR, Runtime
from flowcache.models.magi.flops import FlopCounter
from flowcache.models.magi.gates import GateTable, joined
from flowcache.models.magi.network import MagiDit
from flowcache.models.magi.step_lengths import StepLengths
from flowcache.models.magi.vae import MagiVae, Tiling
from flowcache.reuse.base import Decision
from flowcache.reuse.spectrum import filtered
from flowcache.schedule import ChunkStep, Row, staged_schedule, step_intervals, timesteps
from flowcache.trace import Trace, Work

# A skipping chunk's velocity, so that the step has its own length; where that leads, the clean latent; or its last
# displacement unscaled, as published (fidelity row 5).
ABLE = Capabilities(
    model="MAGI-1",
    distances=("embedded_latent", "latent", "clean", "filtered_latent"),
    quantities=("velocity", "clean", "displacement"),
    correctable=("velocity", "clean"),
    guided=("velocity", "clean", "displacement"),
    shares_keys=True,
    motions=("latent",),
    decisions=("repeat", "held", "isolated", "tokens", "oldest_keys"),
)


@dataclass(frozen=True)
class _Pass:
    """A member of a forward and what it is for."""

    kind: str
    member: Member
    time: float


class MagiGeneration(CachingGeneration):
    """See flowcache.models.base.Generation. What is forecast is the guided velocity, of all branches together.

    Args:
        dit: the network.
        runtime: sampling settings.
        method: refused where it does not go with the model.
        captions: cross-attention keys and values of every chunk's caption (one per chunk, prefix included).
        null_caption: those of the null caption.
        noise: float32 [1, C, f, h, w] for the whole video; f is a multiple of the chunk width.
        prefix: float32 [1, C, p, h, w] latents of given first frames, or None.
        keep_prefix_frames: emit the first chunk whole although it begins with given frames (image-to-video).
        vae: for ``decode``; may be None where only latents are wanted.
    """

    scores_after_rows = True

    def __init__(
        self,
        dit: MagiDit,
        runtime: Runtime,
        method: Method,
        captions: Sequence[CaptionKv],
        null_caption: CaptionKv,
        noise: Tensor,
        prefix: Tensor | None = None,
        keep_prefix_frames: bool = False,
        vae: MagiVae | None = None,
    ) -> None:
        self.dit, self.runtime, self.vae = dit, runtime, vae
        self.captions, self.null_caption = captions, null_caption
        self.prefix, self.keep_prefix_frames = prefix, keep_prefix_frames
        self.latents = noise.clone()
        width = runtime.chunk_width
        num_chunks = noise.shape[2] // width
        schedule = staged_schedule(
            num_chunks,
            timesteps(runtime.num_steps, runtime.schedule, runtime.shift, runtime.shortcut_mode),
            runtime.window_size,
            0 if prefix is None else prefix.shape[2] // width,
            step_intervals(runtime.num_steps, runtime.shortcut_mode),
        )
        config, device = dit.config, noise.device
        tokens_per_frame = noise.shape[3] * noise.shape[4] // config.patch_size**2
        self._tokens = tokens_per_frame * width // config.t_patch_size
        self._flops = FlopCounter(config, self._tokens)
        shape = CacheShape(
            config.num_layers,
            config.num_query_groups,
            config.kv_channels,
            config.num_attention_heads,
            tokens_per_frame,
            self._tokens,
            num_chunks,
            config.params_dtype,
            device,
            dit.rope.pairs(noise.shape[3] // config.patch_size, noise.shape[4] // config.patch_size),
        )
        branches = 1 if runtime.cfg_number == 1 else 2
        runs = self._flops.compression, dit.attention_backend, dit.parallel
        super().__init__(method, schedule, ABLE, shape, branches, *runs)
        self._history = self.branches[0].history
        self._awaiting_refresh = self.branches[0].awaiting  # all branches compute in the same rows
        self._rope = dit.rope_table(num_chunks, width, noise.shape[3], noise.shape[4])
        self._step_lengths = StepLengths(schedule, device)

    # What the sampler calls, in its order.

    def start(self, clock: SectionClock) -> list[Work]:
        self._set_clock(clock)
        runtime, first = self.runtime, self.schedule.prefix_chunks
        self._gates = GateTable(self.dit, self.schedule, runtime.clean_t, runtime.cfg_number == 3, self.latents.device)
        work = [
            self._flops.caption(chunk, _num_tokens(self.captions[chunk]))
            for chunk in range(first, self.schedule.num_chunks)
        ]
        work.append(self._flops.caption(-1, _num_tokens(self.null_caption)))
        work.append(self._flops.times(self._gates.num_times))
        return work + (self._encode_prefix() if first else [])

    def begin_row(self, row: Row) -> None:
        """A chunk that begins with given frames has them put back before every forward; its time stays as it is."""
        self._row = row
        self._put_given_frames()

    def measured_chunks(self, row: Row) -> tuple[int, ...]:
        return row.chunks

    def features(self, kind: str, chunks: tuple[int, ...]) -> Tensor:
        latents = self.latents[:, :, self._frames(chunks[0], chunks[-1])]
        if kind == "latent":
            # A copy: the latents move on in place before they are compared again.
            return latents.unflatten(2, (len(chunks), -1)).transpose(0, 2).flatten(1).clone()
        if kind == "embedded_latent":
            return self.dit.embed(latents)[0].unflatten(0, (len(chunks), -1))
        if kind == "clean":
            return self._estimates(chunks, latents.chunk(len(chunks), dim=2))
        if kind == "filtered_latent":
            return filtered(latents.chunk(len(chunks), dim=2), [1 - self._row.step_of(chunk).t for chunk in chunks])
        raise unknown_distance(kind, ABLE)

    def frames(self, kind: str, chunks: tuple[int, ...]) -> Tensor:
        latents = self.latents[:, :, self._frames(chunks[0], chunks[-1])]
        return latent_tokens(latents, self.dit.config.patch_size)

    def compute(self, row: Row, decision: Decision) -> list[Work]:
        work = self._compute(row, decision) if decision.compute else []
        if self._compresses("published") and row.chunks[-1] < self.schedule.num_chunks - 1:
            ends_here = row.finished and not self.method.refresh_clean_kv
            compression = self._compression(row.finished[-1] + 1 if ends_here else None, row, row.chunks[-1])
            if compression:
                for cache in self.caches:
                    cache.compress()
            work += compression
        return work

    def _compute(self, row: Row, decision: Decision) -> list[Work]:
        """The row's forward, and before it the compression that is due."""
        work = self._compression(None, row, decision.compute[-1]) if self._compresses("sound") else []
        newest = decision.compute[-1] if work or self._compresses("published") else None
        passes = [
            _Pass("refresh", self._member(chunk, self.null_caption, None), self.runtime.clean_t)
            for chunk in self._awaiting_refresh
        ]
        for chunk in decision.compute:
            step = row.step_of(chunk)
            member = self._member(chunk, self.captions[chunk], step.step)
            if chunk in decision.isolated:
                member = replace(member, first_key_chunk=chunk)
            if chunk in decision.oldest_keys:
                oldest = self._member(row.oldest.chunk, member.caption, row.oldest.step)
                member = replace(member, first_key_chunk=oldest.first_key_chunk, last_key_chunk=oldest.position)
            if chunk == newest:
                member = replace(member, scores=True)
            member = replace(member, subset=Subset.of(decision.mask(0, chunk), self.latents.device))
            passes.append(_Pass("denoise", member, step.t))
        if self._runs_near_clean(row, decision):
            oldest = row.oldest.chunk
            copy = Member(oldest, self.captions[oldest], alone=True)
            passes.append(_Pass("near_clean", copy, row.oldest.t))
        subsets = {p.member.position: p.member.subset for p in passes if p.kind == "denoise"}
        guided = self._guidance_1 if self.runtime.cfg_number == 1 else self._guidance_3
        for chunk, velocity in guided(row, passes).items():
            step, latents = row.step_of(chunk), self.latents[:, :, self._frames(chunk)]
            if self.quantity == "displacement":
                velocity *= self._step_lengths.of(row, chunk)
            elif self.quantity == "clean":
                velocity = latents + (1 - step.t) * velocity
            if (subset := subsets[chunk]) is not None:
                computed = latent_mask(subset.mask, *latents.shape[2:])
                velocity = self._history.completed(step, velocity, computed)
            self._history.update(step, velocity, latents)
        for branch in self.branches:
            branch.awaiting.clear()
        return work + self._count(passes)

    def advance(self, row: Row, decision: Decision) -> None:
        for step in row.steps:
            latents = self.latents[:, :, self._frames(step.chunk)]
            if step.chunk in decision.held:
                self._history.update(step, torch.zeros_like(latents), latents)
                continue
            if step.chunk in decision.compute:
                output = self._correct(step, latents)
            else:
                if self._history.opens_gap(step.chunk):
                    self._history.open_gap(step.chunk, latents.clone(), latents.nbytes)
                output = self._history.predict(step, repeat=step.chunk in decision.repeat)
            if self.quantity != "displacement":
                output = self._velocity(output, latents, step) * self._step_lengths.of(row, step.chunk)
            if self._measures_estimates:
                whole_way = (1 - step.t) / (step.t_next - step.t)  # to the clean latent, in the step's lengths
                self._keep_estimate(step.chunk, torch.add(latents, output, alpha=whole_way))
            latents += output

    def _correct(self, step: ChunkStep, latents: Tensor) -> Tensor:
        """The chunk's computed output; where skipped steps are to be corrected, its latents are put where it belongs.

        They are taken again from where they began. What the network said of the clean latent stays true then, rather
        than its velocity.
        """
        output, corrected = self._history.newest(step.chunk), self._history.take_corrected(step.chunk)
        if corrected is None:
            return output
        latent, skipped = corrected
        for each, interpolated in skipped:
            latent.add_(self._velocity(interpolated, latent, each), alpha=each.t_next - each.t)
        if self.quantity == "velocity":
            output = output + (latents - latent) / (1 - step.t)
        latents.copy_(latent)
        return output

    def _velocity(self, output: Tensor, latent: Tensor, step: ChunkStep) -> Tensor:
        """Of an output, at a step's time in a latent."""
        return output if self.quantity == "velocity" else (output - latent) / (1 - step.t)

    def finish(self, chunk: int) -> Tensor:
        self._put_given_frames()  # the last step moved them; upstream emits an image's frames so
        latent = self.latents[0, :, self._frames(chunk)].clone()
        self._finish_chunk(chunk, last_reader=self.schedule.num_chunks - 1)
        return latent

    def decode(self, chunk: int, latent: Tensor) -> Tensor:
        if self.vae is None:
            raise RuntimeError("this generation was made without a VAE; give it one to decode frames")
        # fps // 2 pixel frames a tile, as upstream: a chunk decodes as independent halves.
        tiling = Tiling(frames=self.runtime.fps // 2)
        frames = as_uint8(self.vae.tiled_decode(latent[None] / self.runtime.scale_factor, tiling))
        return frames[self._given_frames(chunk) * TEMPORAL_FACTOR :]

    def paper_flops(self, trace: Trace) -> int:
        """A run's operations in the paper's accounting, see FlopCounter.paper."""
        return self._flops.paper(trace)

    def velocity(self, chunk: int) -> Tensor:
        """The chunk's last computed velocity (or displacement) [1, C, f, h, w]."""
        return self._history.newest(chunk)

    # Parts.

    def _compresses(self, timing: str) -> bool:
        return self._budget is not None and self.method.kv.select.timing == timing

    def _compression(self, end: int | None, row: Row, scorer: int) -> list[Work]:
        """Begin the compression of chunks before ``end``, or of all that were final before the row, by a chunk's
        queries."""
        end = self._final_end(self.branches[0], row.oldest.chunk) if end is None else end
        return self._begin_compression(self.branches, end, scorer) * (self.num_branches // len(self.branches))

    def _put_given_frames(self) -> None:
        """Restore the given frames of the chunk that is only partly given."""
        if self.prefix is not None:
            start, end = self.schedule.prefix_chunks * self.runtime.chunk_width, self.prefix.shape[2]
            self.latents[:, :, start:end] = self.prefix[:, :, start:]

    def _encode_prefix(self) -> list[Work]:
        """Keys and values of the whole prefix chunks: clean, null caption, one forward."""
        chunks = range(self.schedule.prefix_chunks)
        self.latents[:, :, : self._frames(chunks[-1]).stop] = self.prefix[:, :, : self._frames(chunks[-1]).stop]
        look_back = self.runtime.prefix_look_back
        passes = [
            _Pass("prefix", Member(c, self.null_caption, max(0, c + 1 - look_back)), self.runtime.clean_t)
            for c in chunks
        ]
        for chunk, cache in product(chunks, self.caches):
            cache.finish(chunk, is_final=False)
        self._forward(self.schedule.rows[0], passes, self.caches[-1], dropped=self.runtime.cfg_number == 3)
        for chunk in chunks:
            for cache in self.caches[:-1]:
                cache.copy_chunk_from(self.caches[-1], chunk)
        return self._count(passes)

    def _guidance_1(self, row: Row, passes: list[_Pass]) -> dict[int, Tensor]:
        """Velocity [1, C, f, h, w] of every chunk that computes, its own tensor."""
        velocities: dict[int, Tensor] = {}
        forward = self._forward(row, passes, self.caches[0])
        for item, v in zip(passes, forward.chunk(len(passes), dim=2), strict=True):
            chunk = item.member.position
            if item.kind == "denoise":
                velocities[chunk] = v.clone()  # of a forward's output that would stay with it
            elif item.kind == "near_clean":
                weight = self.runtime.near_clean_history_weight
                velocities[chunk] = velocities[chunk] * weight + v * (1 - weight)
        return velocities

    def _guidance_3(self, row: Row, passes: list[_Pass]) -> dict[int, Tensor]:
        """The same: captioned, null with history, and null alone; history always comes from the null passes."""
        null_passes = [_Pass(p.kind, replace(p.member, caption=self.null_caption), p.time) for p in passes]
        alone = [
            _Pass(p.kind, Member(p.member.position, self.null_caption, alone=True), p.time)
            for p in passes
            if p.kind == "denoise"
        ]
        captioned, null = self.caches[0], self.caches[-1]
        # The first number is whose process computes it; the last forward, without history, takes least.
        taken = [(0, passes, captioned, False), (1, null_passes, null, True), (0, alone, None, True)]
        forwards = [(branch, partial(self._forward, row, *rest), len(rest[0])) for branch, *rest in taken]
        found = self.parallel.run(forwards, self.latents[:, :, self._frames(0)])
        with_text, with_history, last = (v.chunk(size, dim=2) for v, (*_, size) in zip(found, forwards, strict=True))
        without, velocities = iter(last), dict[int, Tensor]()
        for item, text, history in zip(passes, with_text, with_history, strict=True):
            chunk = item.member.position
            if item.kind == "refresh":
                self._share_chunk(chunk)
                continue
            previous_scale, text_scale = self.runtime.guidance_scales(row.step_of(chunk).t)
            velocities[chunk] = (
                (1 - previous_scale) * next(without) + (previous_scale - text_scale) * history + text_scale * text
            )
        return velocities

    def _forward(self, row: Row, passes: Sequence[_Pass], cache: KvCache | None, dropped: bool = False) -> Tensor:
        """Velocities of all members, one after another: [1, C, f, h, w]."""
        chunks = [p.member.position for p in passes]
        latents = joined([self.latents[:, :, self._frames(chunk)] for chunk in chunks], dim=2)
        gates = self._gates.of(row.interval, [p.time for p in passes], dropped)
        rope = tuple(joined([table[chunk] for chunk in chunks], dim=0) for table in self._rope)
        return self.dit(latents, gates, [p.member for p in passes], cache, rope)

    def _member(self, chunk: int, caption: CaptionKv, step: int | None) -> Member:
        look_back = self.runtime.look_back(step)
        return Member(chunk, caption, 0 if look_back is None else max(0, chunk + 1 - look_back))

    def _runs_near_clean(self, row: Row, decision: Decision) -> bool:
        return (
            self.runtime.cfg_number == 1
            and self.method.near_clean
            and row.oldest.chunk in decision.compute
            and row.oldest.t > self.runtime.near_clean_threshold
        )

    def _count(self, passes: Sequence[_Pass]) -> list[Work]:
        """Work of the passes. Guidance 3 runs every pass with and without caption, and denoises once more alone."""
        work = []
        for kind, member in ((p.kind, p.member) for p in passes):
            keys = self._tokens
            if not member.alone:
                keys = self.caches[0].num_keys(*member.keys)
            running = None if member.subset is None else member.subset.num_tokens
            work.append(self._flops.chunk(kind, member.position, keys, _num_tokens(member.caption), running))
            if self.runtime.cfg_number == 3 and kind != "prefix":
                null = _num_tokens(self.null_caption)
                work.append(self._flops.chunk(kind, member.position, keys, null, running))
                if kind == "denoise":
                    work.append(self._flops.chunk(kind, member.position, self._tokens, null))
        return work

    def _frames(self, first: int, last: int | None = None) -> slice:
        """Latent frames of chunks first..last."""
        width = self.runtime.chunk_width
        return slice(first * width, ((first if last is None else last) + 1) * width)

    def _given_frames(self, chunk: int) -> int:
        """Latent frames of the chunk that were given, not generated, and are therefore not emitted."""
        if self.prefix is None or (chunk == 0 and self.keep_prefix_frames):
            return 0
        return min(self.runtime.chunk_width, max(0, self.prefix.shape[2] - self._frames(chunk).start))


def _num_tokens(caption: CaptionKv) -> int:
    return caption.keys[0].shape[2]
