"""One causal Wan video in the making: chunks of latent frames, a window of keys, and prompts that may change.

Shape letters: C latent channels, f x h x w latent frames, rows and columns of the video, b a chunk's latent frames, L
caption tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from flowcache.clock import SectionClock
from flowcache.kv.budget import Budget
from flowcache.kv.cache import KvCache
from flowcache.kv.window import WindowCache
from flowcache.method import Method
from flowcache.models.capabilities import Capabilities, unknown_distance
from flowcache.models.frames import as_uint8
from flowcache.models.generation import Branch, CacheShape, CachingGeneration
from flowcache.models.wan.attention import CaptionKv, Member, Pack
from flowcache.models.wan.blocks import Blocks
from flowcache.models.wan.checks import check_settings
from flowcache.models.wan.config import CLEAN, Sampling
from flowcache.models.wan.flops import FlopCounter
from flowcache.models.wan.network import WanNetwork
from flowcache.models.wan.rotary import Rotary, rotary_pairs
from flowcache.models.wan.steppers import FreshNoise, UniPc
from flowcache.models.wan.unipc import noise_levels
from flowcache.models.wan.vae import WanVae
from flowcache.models.wan.window import FrameWindow, Seen
from flowcache.reuse.base import Decision
from flowcache.reuse.spectrum import filtered
from flowcache.schedule import ChunkStep, Row
from flowcache.trace import Trace, Work

# What is forecast is the estimate of the clean latent, or the velocity. Steps that draw fresh noise cannot be taken
# again; those of a solver can.
ABLE = Capabilities(
    model="causal Wan with fresh noise in every step",
    distances=(
        "latent",
        "embedded_latent",
        "clean",
        "rescaled_modulation",
        "rescaled_time_embedding",
        "filtered_latent",
    ),
    quantities=("clean", "velocity"),
    guided=("clean", "velocity"),
    decisions=("repeat",),
    heads=True,
)
ABLE_UNIPC = replace(ABLE, model="causal Wan with solver='unipc'", correctable=("clean",))


@dataclass(frozen=True)
class _Pass:
    """Neighbouring latent frames of a forward, first..end - 1, at one time; ``chunk`` is the newest of theirs."""

    kind: str
    chunk: int
    first: int
    end: int
    time: float
    seen: Seen


class WanGeneration(CachingGeneration):
    """See flowcache.models.base.Generation.

    A finished chunk is encoded clean along with the next row that computes, so that it takes no forward of its own. A
    row in which the prompt changes encodes all frames of the window anew instead, with the new prompt, each of which
    sees all (NVlabs/LongLive: pipeline/interactive_causal_inference.py).

    Args:
        network: the transformer.
        sampling: its settings.
        method: refused where it does not go with the model or its settings.
        captions: text features [1, L, text channels] of every prompt, in order.
        noise: float32 [1, C, f, h, w], of what is generated; with a prefix its frames come on top.
        fresh_noise: float32 [K - 1, 1, C, f, h, w], see FreshNoise; None where no step but the last needs it.
        prefix: float32 [1, C, p, h, w] latents of given first frames, whole chunks, or None.
        prompt_starts: of every caption but the first, the latent frame of the video from which on it counts; chunks
            that begin before it still take the one before.
        negative: text features of the negative prompt, for guidance.
        vae: for ``decode``; None where only latents are wanted.
        emit_prefix: whether given frames are part of the video (an image), or were there before it.
    """

    def __init__(
        self,
        network: WanNetwork,
        sampling: Sampling,
        method: Method,
        captions: Sequence[Tensor],
        noise: Tensor,
        fresh_noise: Tensor | None = None,
        prefix: Tensor | None = None,
        prompt_starts: Sequence[int] = (),
        negative: Tensor | None = None,
        vae: WanVae | None = None,
        emit_prefix: bool = False,
    ) -> None:
        check_settings(sampling, method, len(captions))
        self.network, self.sampling, self.vae = network, sampling, vae
        self.latents = noise.clone() if prefix is None else torch.cat([prefix, noise], dim=2)
        given, (rows, columns) = 0 if prefix is None else prefix.shape[2], noise.shape[3:]
        self.blocks = Blocks(given + noise.shape[2], sampling.block_frames, sampling.first_frame_alone)
        # Heads that keep frames of their own keep them at their own time.
        turns_sink = sampling.relative_rope and not method.kv.select.by_head
        self.frame_window = FrameWindow(replace(sampling, relative_rope=turns_sink), self.blocks)
        self.frame_window.check_positions(network.transformer.rope.max_seq_len)
        schedule = sampling.schedule(self.blocks.num_chunks, self.blocks.chunks_of(given))
        self._features, self._negative = captions, negative
        starts = [self.blocks.start(chunk) for chunk in range(self.blocks.num_chunks)]
        self._prompts = [sum(start >= begins for begins in prompt_starts) for start in starts]  # of every chunk
        config, (_, patch_rows, patch_columns) = network.config, network.config.patch_size
        self._rows, self._columns = rows, columns
        rows, columns = rows // patch_rows, columns // patch_columns
        self._tokens = rows * columns  # of a frame
        self._rope = Rotary(config.attention_head_dim, self.blocks.num_frames, rows, columns, network.device)
        self._flops = FlopCounter(config, self._tokens * sampling.block_frames, captions[0].shape[1])
        heads = config.num_attention_heads
        shape = CacheShape(
            config.num_layers,
            heads,
            config.attention_head_dim,
            heads,
            self._tokens,
            self._tokens * sampling.block_frames,
            schedule.num_chunks,
            network.dtype,
            network.device,
            rotary_pairs(config.attention_head_dim, rows, columns, network.device),
        )
        able = ABLE_UNIPC if sampling.solver == "unipc" else ABLE
        runs = self._flops.compression, network.attention_backend, network.parallel
        super().__init__(method, schedule, able, shape, 1 if negative is None else 2, *runs)
        self._history = self.branches[0].history  # of all branches together
        self._steps = (
            UniPc(noise_levels(sampling.num_steps, sampling.shift)[0])
            if sampling.solver == "unipc"
            else FreshNoise(sampling.shift, schedule, self.blocks, fresh_noise)
        )
        for branch in self.branches:
            branch.awaiting += range(schedule.prefix_chunks)
            for chunk in range(schedule.prefix_chunks):
                for place in self._places(chunk):
                    branch.cache.finish(place, is_final=False)
        self._decoder, self._emit_prefix = None if vae is None else vae.decoder(), emit_prefix

    def _new_cache(self, budget: Budget | None, device: torch.device | str) -> KvCache:
        if self.method.kv.budget is not None:
            return super()._new_cache(budget, device)
        shape, window = self._shape, self.frame_window
        if self.method.kv.select.by_head:
            starts = [self.blocks.start(chunk) for chunk in range(self.blocks.num_chunks + 1)]
            return self._head_cache(starts, shape.tokens_per_frame, device)
        return WindowCache(
            shape.num_layers,
            shape.num_heads,
            shape.head_channels,
            shape.tokens_per_frame,
            window.num_frames,
            sink_frames=self.sampling.sink_frames,
            gathered_frames=window.gathered_frames,
            later=self._rope.later,
            dtype=shape.dtype,
            device=device,
            policy=self.method.kv,
            open_chunks=self._open_chunks,
            chunk_frames=self.sampling.block_frames,
        )

    def _places(self, chunk: int) -> range:
        """See _member: chunks, or latent frames."""
        if self.method.kv.budget is not None:
            return super()._places(chunk)
        return range(self.blocks.start(chunk), self.blocks.start(chunk + 1))

    # What the sampler calls, in its order.

    def follows(self, chunk: int) -> bool:
        same_prompt = self._prompts[chunk] == self._prompts[chunk - 1]
        return same_prompt and self.blocks.length(chunk) == self.blocks.length(chunk - 1)

    def measured_chunks(self, row: Row) -> tuple[int, ...]:
        return row.chunks

    def start(self, clock: SectionClock) -> list[Work]:
        self._set_clock(clock)
        features = [*self._features] if self._negative is None else [*self._features, self._negative]
        self._captions = [self.network.caption(each) for each in features]
        times = {step.t for row in self.schedule.rows for step in row.steps} | {self.sampling.context_noise}
        times |= {CLEAN} if self.schedule.prefix_chunks else set()
        self._times = {time: place for place, time in enumerate(sorted(times))}
        self._table = self.network.time_table(torch.tensor(sorted(times)).to(self.network.device))
        return [self._flops.caption() for _ in features] + [self._flops.times(len(times))]

    def begin_row(self, row: Row) -> None:
        self._row = row
        self._steps.begin(row)

    def features(self, kind: str, chunks: tuple[int, ...]) -> Tensor:
        frames = self.latents[:, :, self.blocks.frames(chunks[0], chunks[-1])]
        if kind == "latent":
            # A copy: the latents move on in place before they are compared again.
            return frames.unflatten(2, (len(chunks), -1)).transpose(0, 2).flatten(1).clone()
        if kind == "embedded_latent":
            return self.network.embed(frames).unflatten(0, (len(chunks), -1))
        if kind == "clean":
            return self._estimates(chunks, frames.chunk(len(chunks), dim=2))
        if kind == "filtered_latent":
            noise = [self._row.step_of(chunk).t / 1000 for chunk in chunks]
            return filtered([self._latent(chunk) for chunk in chunks], noise)
        if kind not in ABLE.distances:
            raise unknown_distance(kind, ABLE)
        table = self._table.modulation if kind == "rescaled_modulation" else self._table.embedding
        return torch.stack([table[self._times[self._row.step_of(chunk).t]] for chunk in chunks])

    def compute(self, row: Row, decision: Decision) -> list[Work]:
        if not decision.compute:
            return []
        work: list[Work] = []
        prompt = self._captions[self._prompts[row.chunks[-1]]]
        captions = [prompt] if self._negative is None else [prompt, self._captions[-1]]
        velocities = [
            self._forward(branch, caption, row, decision.compute, work)
            for branch, caption in zip(self.branches, self.parallel.held(captions), strict=True)
        ]
        velocities = self._of_all_branches(velocities, work)
        for chunk, velocity in velocities[0].items():
            if len(velocities) == 2:
                without = velocities[1][chunk]
                velocity = without + self.sampling.guidance_scale * (velocity - without)
            step, latent = row.step_of(chunk), self._latent(chunk)
            output = self._steps.clean(step, velocity, latent) if self.quantity == "clean" else velocity.clone()
            self._history.update(step, output, latent)
        return work

    def advance(self, row: Row, decision: Decision) -> None:
        for step in row.steps:
            output, latent = self._output(step, decision), self._latent(step.chunk)
            clean = output if self.quantity == "clean" else self._steps.clean(step, output, latent)
            self._keep_estimate(step.chunk, clean)
            latent.copy_(self._steps.advance(step, clean, latent))

    def _output(self, step: ChunkStep, decision: Decision) -> Tensor:
        """A chunk's output, computed or forecast; what was skipped is corrected first."""
        chunk, history, latent = step.chunk, self._history, self._latent(step.chunk)
        if chunk in decision.compute:
            output = history.newest(chunk)
            if (corrected := history.take_corrected(chunk)) is not None:
                state, skipped = corrected
                latent.copy_(self._steps.take_again(chunk, state, [estimate for _, estimate in skipped]))
            return output
        if history.opens_gap(chunk):
            history.open_gap(chunk, *self._steps.state(chunk, latent))
        return history.predict(step, repeat=chunk in decision.repeat)

    def finish(self, chunk: int) -> Tensor:
        self._finish_chunk(chunk, last_reader=self.schedule.num_chunks - 1)
        return self._latent(chunk)[0].clone()

    def decode(self, chunk: int, latent: Tensor) -> Tensor:
        """See Generation; each chunk once, in order."""
        if self._decoder is None:
            raise RuntimeError("this generation was made without a VAE; give it one to decode frames")
        frames, first = [], self.schedule.prefix_chunks
        if chunk == first and first:
            given = self._decoder(self.latents[:, :, self.blocks.frames(0, first - 1)])
            frames += [given] if self._emit_prefix else []
        return as_uint8(torch.cat([*frames, self._decoder(latent[None])], dim=2))

    def paper_flops(self, trace: Trace) -> int:
        """A run's operations as the published code would take them: what was denoised, and for every chunk a forward
        of its own that encodes it clean, the last one's too; where chunks roll, for the first chunk of every row.

        Given frames and those encoded anew for a new prompt count as they ran.
        """
        rows, start, branches = self.schedule.rows, self.blocks.start, self.num_branches
        total = sum(work.flops for _, work in trace.work if work.kind in ("prefix", "recache"))
        for index, chunk in [(index, work.chunk) for index, work in trace.work if work.kind == "denoise"]:
            chunks = rows[index].chunks
            total += self._charged(chunk, self.frame_window.denoising(start(chunks[0]), start(chunks[-1] + 1)))
        for chunk in [row.chunks[0] for row in rows if self.sampling.rolling or row.finished]:
            total += branches * self._charged(chunk, self.frame_window.encoding(start(chunk + 1)))
        return total

    def _charged(self, chunk: int, seen: Seen) -> int:
        tokens, keys = self.blocks.length(chunk) * self._tokens, self.frame_window.key_frames(seen) * self._tokens
        if self.method.kv.select.by_head:
            keys = self.branches[0].cache.num_keys(*seen)
        return self._count("denoise", chunk, keys, tokens).flops

    def _count(self, kind: str, chunk: int, key_tokens: int | Fraction, tokens: int) -> Work:
        return replace(self._flops, tokens_per_chunk=tokens).chunk(kind, chunk, key_tokens)

    # Forwards.

    def _forward(
        self, branch: Branch, caption: CaptionKv, row: Row, computed: Sequence[int], work: list[Work]
    ) -> dict[int, Tensor]:
        """One branch's velocity [1, C, b, h, w] of the chunks to compute, in one forward with those to be encoded; adds
        what it took to ``work``."""
        passes = self._passes(branch, row, computed)
        end = self._final_end(branch, row.chunks[0])
        compression = self._begin_compression([branch], end, passes[-1].chunk)
        work += compression
        members = [self._member(each) for each in passes]
        members[-1] = replace(members[-1], scores=bool(compression))
        x = self.network.embed(torch.cat([self.latents[:, :, each.first : each.end] for each in passes], dim=2))
        tables = [self._rope.frames(each.first, each.end - 1) for each in passes]
        rope = (torch.cat([cosine for cosine, _ in tables]), torch.cat([sine for _, sine in tables]))
        pack = Pack(tuple(members), rope, branch.cache)
        x = self.network.blocks(x, self._of_frames(self._table.modulation, passes), caption, pack)
        branch.awaiting.clear()
        work += [
            self._count(each.kind, each.chunk, branch.cache.num_keys(*member.keys), member.num_tokens)
            for each, member in zip(passes, members, strict=True)
        ]
        denoised = [each for each in passes if each.kind == "denoise"]
        sizes = [each.end - each.first for each in denoised]
        embedding = self._of_frames(self._table.embedding, denoised)
        velocity = self.network.head(x[len(x) - sum(sizes) :], embedding, self._rows, self._columns)
        return {each.chunk: part for each, part in zip(denoised, velocity.split(sizes, dim=2), strict=True)}

    def _passes(self, branch: Branch, row: Row, computed: Sequence[int]) -> list[_Pass]:
        """Those of a forward: what is to be encoded first, oldest first, and then the chunks to compute."""
        blocks, window, passes = self.blocks, self.frame_window, []
        if self._changes_prompt(row):
            passes.append(self._recache(branch, blocks.start(row.chunks[0])))
        else:
            for chunk in branch.awaiting:
                given = chunk < self.schedule.prefix_chunks
                kind, time = ("prefix", CLEAN) if given else ("refresh", self.sampling.context_noise)
                first, end = blocks.start(chunk), blocks.start(chunk + 1)
                passes.append(_Pass(kind, chunk, first, end, time, window.encoding(end)))
        beginning, last = blocks.start(row.chunks[0]), blocks.start(row.chunks[-1] + 1)
        seen = window.denoising(beginning, last)
        for chunk in computed:
            first, end = blocks.start(chunk), blocks.start(chunk + 1)
            passes.append(_Pass("denoise", chunk, first, end, row.step_of(chunk).t, seen))
        return passes

    def _changes_prompt(self, row: Row) -> bool:
        """Whether the row's chunk is the first of a new prompt."""
        chunk = row.chunks[0]
        begins = row.steps[0].step == 0 and chunk > self.schedule.prefix_chunks
        return begins and self._prompts[chunk] != self._prompts[chunk - 1]

    def _recache(self, branch: Branch, end: int) -> _Pass:
        """The newest frames before ``end`` once more, as many as the window holds; all see all."""
        window = self.sampling.window_frames or end
        first = max(0, end - window)
        if first and self.sampling.renew_sink and self.sampling.sink_frames:
            branch.cache.renew_sink(first)
        chunk = self._row.chunks[0] - 1
        return _Pass("recache", chunk, first, end, self.sampling.context_noise, self.frame_window.encoding(end))

    def _member(self, each: _Pass) -> Member:
        """In the cache's positions: chunks where it has a budget, latent frames where it has none."""
        tokens = (each.end - each.first) * self._tokens
        if self.method.kv.budget is not None:
            return Member(each.chunk, tokens, 0, each.chunk)
        return Member(each.first, tokens, each.seen.first, each.seen.last, sink=each.seen.sink)

    def _of_frames(self, table: Tensor, passes: Sequence[_Pass]) -> Tensor:
        """The time table's entry of each of the passes' frames."""
        entries = [table[self._times[each.time]].expand(each.end - each.first, *table.shape[1:]) for each in passes]
        return torch.cat(entries)

    def _latent(self, chunk: int) -> Tensor:
        """A view [1, C, b, h, w]."""
        return self.latents[:, :, self.blocks.frames(chunk)]
