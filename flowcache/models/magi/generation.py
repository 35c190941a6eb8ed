"""One MAGI-1 video in the making: latents, captions, caches and remembered velocities.

Shape letters: C latent channels, f x h x w latent frames, rows and columns of the whole video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowcache.clock import SectionClock
from flowcache.kv_budget import Budget, plan_budget
from flowcache.kv_cache import KvCache
from flowcache.method import MethodConfig
from flowcache.models.base import check_method, unknown_distance
from flowcache.models.frames import as_uint8
from flowcache.models.magi.attention import CaptionKv, Member
from flowcache.models.magi.config import TEMPORAL_FACTOR, Runtime
from flowcache.models.magi.flops import FlopCounter
from flowcache.models.magi.network import MagiDit, step_size_number
from flowcache.models.magi.vae import MagiVae, Tiling
from flowcache.policy import Decision
from flowcache.schedule import Row, Schedule, staged_schedule, step_intervals, timesteps
from flowcache.trace import Trace, Work

DISTANCES = ("embedded_latent", "latent")


@dataclass(frozen=True)
class _Pass:
    """A member of a forward and what it is for."""

    kind: str
    member: Member
    time: Tensor  # [1], on the device


class MagiGeneration:
    """See flowcache.models.base.Generation.

    Args:
        dit: the network.
        runtime: sampling settings.
        method: its shared options apply here (reuse, refresh_clean_kv, near_clean).
        captions: cross-attention keys and values of every chunk's caption (one per chunk, prefix included).
        null_caption: those of the null caption.
        noise: float32 [1, C, f, h, w] for the whole video; f is a multiple of the chunk width.
        prefix: float32 [1, C, p, h, w] latents of given first frames, or None.
        keep_prefix_frames: emit the first chunk whole although it begins with given frames (image-to-video).
        vae: for ``decode``; may be None where only latents are wanted.
    """

    def __init__(
        self,
        dit: MagiDit,
        runtime: Runtime,
        method: MethodConfig,
        captions: Sequence[CaptionKv],
        null_caption: CaptionKv,
        noise: Tensor,
        prefix: Tensor | None = None,
        keep_prefix_frames: bool = False,
        vae: MagiVae | None = None,
    ) -> None:
        if method.reuse == "residual":
            raise ValueError("reuse='residual' does not exist on MAGI-1; choose 'velocity' or 'displacement'")
        self.dit, self.runtime, self.method, self.vae = dit, runtime, method, vae
        self.captions, self.null_caption = captions, null_caption
        self.prefix, self.keep_prefix_frames = prefix, keep_prefix_frames
        self.latents = noise.clone()
        width = runtime.chunk_width
        num_chunks = noise.shape[2] // width
        prefix_chunks = 0 if prefix is None else prefix.shape[2] // width
        self.schedule: Schedule = staged_schedule(
            num_chunks,
            timesteps(runtime.num_steps, runtime.schedule, runtime.shift, runtime.shortcut_mode),
            runtime.window_size,
            prefix_chunks,
            step_intervals(runtime.num_steps, runtime.shortcut_mode),
        )
        check_method(method, self.schedule, DISTANCES, "MAGI-1")
        config, device = dit.config, noise.device
        tokens_per_frame = noise.shape[3] * noise.shape[4] // config.patch_size**2
        self._tokens = tokens_per_frame * width // config.t_patch_size
        self._flops = FlopCounter(config, self._tokens)
        self._num_branches = 1 if runtime.cfg_number == 1 else 2
        self._budget = plan_budget(
            method.kv_budget,
            method.compression,
            self.schedule,
            tokens_per_frame,
            self._tokens,
            method.refresh_clean_kv,
            lambda budget: self._num_branches * self._new_cache(budget, "meta").bytes_allocated,
            device,
            query_heads=config.num_attention_heads if method.compression.timing == "published" else 0,
        )
        self._caches = [self._new_cache(self._budget, device) for _ in range(self._num_branches)]
        self._update = torch.zeros_like(noise)  # each chunk's remembered velocity or displacement
        self._awaiting_refresh: list[int] = []
        self._rope = dit.rope_table(num_chunks, width, noise.shape[3], noise.shape[4])
        self._load_times(device)

    def _load_times(self, device: torch.device) -> None:
        """All rows' times and step lengths go to the device once: the loop never copies from the host."""
        window = self.schedule.window_size
        times, lengths = torch.zeros(2, len(self.schedule.rows), window)
        for row in self.schedule.rows:
            for i, step in enumerate(row.steps):
                times[row.index, i] = step.t
                lengths[row.index, i] = torch.tensor(step.t_next) - torch.tensor(step.t)
        self._times = times.to(device)
        # One step length a frame, shaped to scale latents.
        frames = lengths.repeat_interleave(self.runtime.chunk_width, dim=1)
        self._step_lengths = frames.to(device)[:, None, None, :, None, None]
        self._clean_time = torch.full((1,), self.runtime.clean_t, device=device)

    # What the sampler calls, in its order.

    def start(self, clock: SectionClock) -> list[Work]:
        for cache in self._caches:
            cache.clock = clock
        first = self.schedule.prefix_chunks
        work = [
            self._flops.caption(chunk, _length(self.captions[chunk]))
            for chunk in range(first, self.schedule.num_chunks)
        ]
        work.append(self._flops.caption(-1, _length(self.null_caption)))
        return work + (self._encode_prefix() if first else [])

    def begin_row(self, row: Row) -> None:
        """A chunk that begins with given frames has them put back before every forward; its time stays as it is."""
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
        raise unknown_distance(kind, DISTANCES, "MAGI-1")

    def compute(self, row: Row, decision: Decision) -> list[Work]:
        work = self._compute(row, decision) if decision.compute else []
        if self._compresses("published") and row.chunks[-1] < self.schedule.num_chunks - 1:
            ends_here = row.finished and not self.method.refresh_clean_kv
            compression = self._begin_compression(row.finished[-1] + 1 if ends_here else self._final_end(row), row)
            if compression:
                for cache in self._caches:
                    cache.compress()
            work += compression
        return work

    def _compute(self, row: Row, decision: Decision) -> list[Work]:
        """The row's forward, and before it the compression that is due."""
        work = self._begin_compression(self._final_end(row), row) if self._compresses("sound") else []
        newest = decision.compute[-1] if work or self._compresses("published") else None
        passes = [
            _Pass("refresh", self._member(chunk, self.null_caption, None), self._clean_time)
            for chunk in self._awaiting_refresh
        ]
        for chunk in decision.compute:
            step, column = row.step_of(chunk), chunk - row.oldest.chunk
            member = self._member(chunk, self.captions[chunk], step.step)
            if chunk in decision.isolated:
                member = replace(member, first_key_chunk=chunk)
            if chunk == newest:
                member = replace(member, scores=True)
            passes.append(_Pass("denoise", member, self._times[row.index, column : column + 1]))
        if self._runs_near_clean(row, decision):
            oldest = row.oldest.chunk
            copy = Member(oldest, self.captions[oldest], alone=True)
            passes.append(_Pass("near_clean", copy, self._times[row.index, :1]))
        step_size = step_size_number(self.schedule.num_steps, row.interval)
        if self.runtime.cfg_number == 1:
            self._guidance_1(row, passes, step_size)
        else:
            self._guidance_3(row, passes, step_size)
        self._awaiting_refresh.clear()
        if self.method.reuse == "displacement":
            for chunk in decision.compute:
                frames = self._frames(chunk)
                self._update[:, :, frames] *= self._lengths(row)[:, :, self._frames_in_row(row, chunk)]
        return work + self._count(passes)

    def advance(self, row: Row, decision: Decision) -> None:
        frames = self._frames(row.chunks[0], row.chunks[-1])
        for chunk in decision.held:
            self._update[:, :, self._frames(chunk)] = 0.0
        if self.method.reuse == "displacement":
            self.latents[:, :, frames] += self._update[:, :, frames]
        else:
            self.latents[:, :, frames] += self._update[:, :, frames] * self._lengths(row)

    def finish(self, chunk: int) -> Tensor:
        self._put_given_frames()  # the last step moved them; upstream emits an image's frames so
        latent = self.latents[0, :, self._frames(chunk)].clone()
        for cache in self._caches:
            cache.finish(chunk)
        # The refresh rides along with the next row that computes; nothing reads the entries before, and after the
        # last chunk nothing reads them at all.
        if self.method.refresh_clean_kv and chunk < self.schedule.num_chunks - 1:
            self._awaiting_refresh.append(chunk)
        return latent

    def decode(self, chunk: int, latent: Tensor) -> Tensor:
        if self.vae is None:
            raise RuntimeError("this generation was made without a VAE; give it one to decode frames")
        # fps // 2 pixel frames a tile, as upstream: a chunk decodes as independent halves.
        tiling = Tiling(frames=self.runtime.fps // 2)
        frames = as_uint8(self.vae.tiled_decode(latent[None] / self.runtime.scale_factor, tiling))
        return frames[self._given_frames(chunk) * TEMPORAL_FACTOR :]

    @property
    def kv_tokens(self) -> int:
        return self._caches[0].num_tokens

    @property
    def kv_bytes_allocated(self) -> int:
        return sum(cache.bytes_allocated for cache in self._caches)

    @property
    def kv_bytes_used(self) -> int:
        return sum(cache.bytes_used for cache in self._caches)

    @property
    def kv_unusable_kept(self) -> int:
        return sum(cache.unusable_kept for cache in self._caches)

    def paper_flops(self, trace: Trace) -> int:
        """A run's operations in the paper's accounting, see FlopCounter.paper."""
        return self._flops.paper(trace)

    def velocity(self, chunk: int) -> Tensor:
        """The chunk's remembered update [1, C, f, h, w]: its last computed velocity (or displacement)."""
        return self._update[:, :, self._frames(chunk)]

    # Parts.

    def _new_cache(self, budget: Budget | None, device: torch.device | str) -> KvCache:
        config = self.dit.config
        sizes = (config.num_layers, config.num_query_groups, config.kv_channels, self._tokens, self.schedule.num_chunks)
        return KvCache(*sizes, dtype=config.params_dtype, device=device, budget=budget)

    def _compresses(self, timing: str) -> bool:
        return self._budget is not None and self.method.compression.timing == timing

    def _final_end(self, row: Row) -> int:
        """Chunks before it were finished before this row, and their keys and values are final."""
        return self._awaiting_refresh[0] if self._awaiting_refresh else row.oldest.chunk

    def _begin_compression(self, end: int, row: Row) -> list[Work]:
        """Begin to compress the chunks before ``end``, in every branch, if they hold more than the budget."""
        if not self._caches[0].exceeds_budget(end):
            return []
        num_queries = self._budget.config.num_queries(self._budget.tokens_per_frame, self._tokens)
        return [
            self._flops.compression(row.chunks[-1], num_queries, cache.begin_compression(end)) for cache in self._caches
        ]

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
            _Pass("prefix", Member(c, self.null_caption, max(0, c + 1 - look_back)), self._clean_time) for c in chunks
        ]
        step_size = step_size_number(self.schedule.num_steps, self.schedule.rows[0].interval)
        self._forward(passes, self._caches[-1], step_size, dropped=self.runtime.cfg_number == 3)
        for chunk in chunks:
            for cache in self._caches[:-1]:
                cache.copy_chunk_from(self._caches[-1], chunk)
            self._caches[-1].finish(chunk)
        return self._count(passes)

    def _guidance_1(self, row: Row, passes: list[_Pass], step_size: float) -> None:
        velocity = self._forward(passes, self._caches[0], step_size)
        for item, v in zip(passes, velocity, strict=True):
            frames = self._frames(item.member.position)
            if item.kind == "denoise":
                self._update[:, :, frames] = v
            elif item.kind == "near_clean":
                weight = self.runtime.near_clean_history_weight
                self._update[:, :, frames] = self._update[:, :, frames] * weight + v * (1 - weight)

    def _guidance_3(self, row: Row, passes: list[_Pass], step_size: float) -> None:
        """Captioned, null with history, and null alone; history always comes from the null passes."""
        captioned, null = self._caches
        null_passes = [_Pass(p.kind, replace(p.member, caption=self.null_caption), p.time) for p in passes]
        alone = [
            _Pass(p.kind, Member(p.member.position, self.null_caption, alone=True), p.time)
            for p in passes
            if p.kind == "denoise"
        ]
        with_text = self._forward(passes, captioned, step_size)
        with_history = self._forward(null_passes, null, step_size, dropped=True)
        without = iter(self._forward(alone, None, step_size, dropped=True))
        for item, text, history in zip(passes, with_text, with_history, strict=True):
            chunk = item.member.position
            if item.kind == "refresh":
                captioned.copy_chunk_from(null, chunk)
                continue
            previous_scale, text_scale = self.runtime.guidance_scales(row.step_of(chunk).t)
            self._update[:, :, self._frames(chunk)] = (
                (1 - previous_scale) * next(without) + (previous_scale - text_scale) * history + text_scale * text
            )

    def _forward(
        self, passes: Sequence[_Pass], cache: KvCache | None, step_size: float, dropped: bool = False
    ) -> Sequence[Tensor]:
        """Velocities of all members, each [1, C, f, h, w]."""
        chunks = [p.member.position for p in passes]
        latents = torch.cat([self.latents[:, :, self._frames(chunk)] for chunk in chunks], dim=2)
        times = torch.cat([p.time for p in passes])[None]
        flags = torch.full_like(times, dropped, dtype=torch.bool)
        rope = tuple(torch.cat([table[chunk] for chunk in chunks]) for table in self._rope)
        velocity = self.dit(latents, times, [p.member for p in passes], cache, flags, step_size, rope)
        return velocity.chunk(len(passes), dim=2)

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
                keys = self._caches[0].num_keys(member.first_key_chunk, member.position)
            work.append(self._flops.chunk(kind, member.position, keys, _length(member.caption)))
            if self.runtime.cfg_number == 3 and kind != "prefix":
                null = _length(self.null_caption)
                work.append(self._flops.chunk(kind, member.position, keys, null))
                if kind == "denoise":
                    work.append(self._flops.chunk(kind, member.position, self._tokens, null))
        return work

    def _frames(self, first: int, last: int | None = None) -> slice:
        """Latent frames of chunks first..last."""
        width = self.runtime.chunk_width
        return slice(first * width, ((first if last is None else last) + 1) * width)

    def _frames_in_row(self, row: Row, chunk: int) -> slice:
        column = chunk - row.oldest.chunk
        return slice(column * self.runtime.chunk_width, (column + 1) * self.runtime.chunk_width)

    def _lengths(self, row: Row) -> Tensor:
        """Step length of every active frame, [1, 1, frames, 1, 1]."""
        return self._step_lengths[row.index][:, :, : len(row.steps) * self.runtime.chunk_width]

    def _given_frames(self, chunk: int) -> int:
        """Latent frames of the chunk that were given, not generated, and are therefore not emitted."""
        if self.prefix is None or (chunk == 0 and self.keep_prefix_frames):
            return 0
        return min(self.runtime.chunk_width, max(0, self.prefix.shape[2] - self._frames(chunk).start))


def _length(caption: CaptionKv) -> int:
    return caption.keys[0].shape[2]
