"""One SkyReels-V2 video in the making: guidance branches and their residuals, window after window.

Shape letters: C latent channels, f x h x w latent frames, rows and columns of a window or a chunk, L caption tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowcache.clock import SectionClock
from flowcache.method import Method
from flowcache.models.capabilities import Capabilities, unknown_distance
from flowcache.models.chunk_tokens import Subset, latent_mask, latent_tokens
from flowcache.models.generation import Branch, CacheShape, CachingGeneration
from flowcache.models.skyreels.checks import check_settings
from flowcache.models.skyreels.config import WAITING, Sampling
from flowcache.models.skyreels.decoding import ChunkFrames
from flowcache.models.skyreels.flops import paper_flops
from flowcache.models.skyreels.network import SkyReelsNetwork
from flowcache.models.skyreels.window import WindowLatents, all_times
from flowcache.models.wan.attention import CaptionKv, Member
from flowcache.models.wan.flops import FlopCounter
from flowcache.models.wan.rotary import rotary_pairs
from flowcache.models.wan.vae import FrameStream
from flowcache.reuse.base import Decision
from flowcache.reuse.spectrum import filtered
from flowcache.schedule import ChunkStep, Row, Schedule, Window
from flowcache.trace import Trace, Work

# What is forecast is what the blocks added, in each guidance branch, and the head then works with the current time; or,
# of both branches together, the estimate of the clean latent, or the velocity.
ABLE = Capabilities(
    model="SkyReels-V2",
    distances=(
        "rescaled_modulation",
        "rescaled_time_embedding",
        "latent",
        "embedded_latent",
        "clean",
        "filtered_latent",
    ),
    quantities=("residual", "clean", "velocity"),
    correctable=("clean",),
    guided=("clean", "velocity"),
    motions=("block_output", "latent"),
    decisions=("repeat", "branches", "tokens"),
    heads=True,
    cacheless=True,
)


@dataclass(frozen=True)
class _Pass:
    """One chunk of a forward and what it is for; ``times`` are its frames' places in the time table, and ``subset`` its
    tokens that run, all by default."""

    kind: str
    chunk: int
    times: Tensor
    subset: Subset | None = None


class SkyReelsGeneration(CachingGeneration):
    """See flowcache.models.base.Generation.

    With the method's attention "cached" a row runs the chunks to compute against the cache. With "native" and "causal"
    it runs the whole window without one, so that a method must compute all of a row's chunks or none.

    Args:
        network: the transformer.
        sampling: its settings; ``schedule`` comes from them.
        method: refused where it does not go with the model.
        captions: text features [1, L, text channels] of the prompt and, for guidance, of the negative prompt.
        noise: float32 [1, C, f, h, w] for every window.
        given: float32 [1, C, p, h, w] latents of the first window's given frames (an image, a video's end), or None.
        condition_noise: like the given frames, for every window (None where it has none); with
            ``sampling.addnoise_condition`` only.
        video: decodes, and encodes a window's end for the next one. None where only latents are wanted: windows then
            hand their last latents on as they are.
        emit_given_frames: whether given whole chunks are part of the video (an image), or were there before it.
    """

    def __init__(
        self,
        network: SkyReelsNetwork,
        sampling: Sampling,
        schedule: Schedule,
        method: Method,
        captions: Sequence[Tensor],
        noise: Sequence[Tensor],
        given: Tensor | None = None,
        condition_noise: Sequence[Tensor | None] = (),
        video: FrameStream | None = None,
        emit_given_frames: bool = False,
    ) -> None:
        check_settings(sampling, method)
        self.network, self.sampling = network, sampling
        self._noise, self._first_given, self._condition_noise = noise, given, condition_noise
        self._features = captions
        self._rows, self._columns = noise[0].shape[3:]
        patch, block = network.config.patch_size, sampling.causal_block_size
        tokens_per_frame = (self._rows // patch[1]) * (self._columns // patch[2])
        self._tokens = block * tokens_per_frame
        self._flops = FlopCounter(network.config, self._tokens, captions[0].shape[1])
        longest = max(window.num_chunks for window in schedule.windows)
        tables = network.rope_table(longest * block, self._rows, self._columns)
        self._rope = tuple(table.unflatten(0, (longest, block)).flatten(1, 2) for table in tables)
        config, heads = network.config, network.config.num_attention_heads
        channels = config.attention_head_dim
        rotary = rotary_pairs(channels, self._rows // patch[1], self._columns // patch[2], network.device)
        sizes = (config.num_layers, heads, channels, heads, tokens_per_frame, self._tokens, longest)
        shape = CacheShape(*sizes, network.dtype, network.device, rotary)
        runs = self._flops.compression, network.attention_backend, network.parallel
        super().__init__(method, schedule, ABLE, shape, len(captions), *runs)
        self._forecasts_guided = self.quantity in ABLE.guided
        self._frames = None if video is None else ChunkFrames(video, schedule.prefix_chunks, emit_given_frames)
        # What the last row's blocks put out in each branch, by chunk, where a policy measures it.
        self._outputs: list[dict[int, Tensor]] = [{} for _ in self.branches]
        self._open(0)

    # What the sampler calls, in its order.

    def measured_chunks(self, row: Row) -> tuple[int, ...]:
        return row.chunks if self._is_cached else tuple(row.visible)

    def start(self, clock: SectionClock) -> list[Work]:
        self._set_clock(clock)
        self._captions = [self.network.caption(features) for features in self.parallel.held(self._features)]
        times = torch.tensor(all_times(self.sampling), device=self.network.device)
        self._table = self.network.time_table(times, self.sampling.fps)
        return [self._flops.caption() for _ in self._features] + [self._flops.times(len(times))]

    def begin_row(self, row: Row) -> None:
        self._row = row
        if row.window and row.index == self.schedule.windows[row.window].rows[0]:
            self._open(row.window)
        self.state.begin(row)

    def features(self, kind: str, chunks: tuple[int, ...]) -> Tensor:
        shown = [self.state.shown(chunk) for chunk in chunks]
        if kind == "latent":
            return torch.stack([latent.flatten() for latent in shown])
        if kind == "embedded_latent":
            return self.network.embed(torch.cat(shown, dim=2)).unflatten(0, (len(chunks), -1))
        if kind == "clean":
            return self._estimates(chunks, shown)
        if kind == "filtered_latent":
            return filtered(shown, [self.state.noise(self._row, chunk) for chunk in chunks])
        if kind not in ABLE.distances:
            raise unknown_distance(kind, ABLE)
        times = torch.stack([self.state.times(self._row, chunk) for chunk in chunks])
        return (self._table.modulation if kind == "rescaled_modulation" else self._table.embedding)[times]

    def frames(self, kind: str, chunks: tuple[int, ...]) -> Tensor:
        if kind == "block_output":
            return torch.stack([torch.cat([outputs[chunk] for chunk in chunks]) for outputs in self._outputs])
        latents = torch.cat([self.state.shown(chunk) for chunk in chunks], dim=2)
        return latent_tokens(latents, self.network.config.patch_size[1])

    def compute(self, row: Row, decision: Decision) -> list[Work]:
        work: list[Work] = []
        velocities = [
            self._run(branch, caption, row, decision, index, work)
            for index, (branch, caption) in enumerate(zip(self.branches, self._captions, strict=True))
        ]
        self._velocities, *guides = self._of_all_branches(velocities, work)
        for without in guides:
            scale, with_prompt = self.sampling.guidance_scale, self._velocities
            self._velocities = {
                chunk: without[chunk] + scale * (with_prompt[chunk] - without[chunk]) for chunk in without
            }
        if self._forecasts_guided:
            history = self.branches[0].history
            for chunk, velocity in self._velocities.items():
                output = self.state.clean(chunk, velocity) if self.quantity == "clean" else velocity.clone()
                if (subset := Subset.of(decision.mask(0, chunk), output.device)) is not None:
                    output = history.completed(row.step_of(chunk), output, latent_mask(subset.mask, *output.shape[2:]))
                history.update(row.step_of(chunk), output, self.state.shown(chunk))
        return work

    def advance(self, row: Row, decision: Decision) -> None:
        for step in row.steps:
            clean = self._clean(step, decision)
            self._keep_estimate(step.chunk, clean)
            self.state.advance(step, clean)
        self.state.end(row)

    def _clean(self, step: ChunkStep, decision: Decision) -> Tensor:
        """The estimate of a chunk's clean latent, computed or forecast; what was skipped is corrected first."""
        chunk, history = step.chunk, self.branches[0].history
        if not self._forecasts_guided:
            return self.state.clean(chunk, self._velocities[chunk])
        if chunk in decision.compute:
            output = history.newest(chunk)
            if (corrected := history.take_corrected(chunk)) is not None:
                state, skipped = corrected
                self.state.take_again(chunk, state, [estimate for _, estimate in skipped])
        else:
            if history.opens_gap(chunk):
                history.open_gap(chunk, *self.state.state(chunk))
            output = history.predict(step, repeat=chunk in decision.repeat)
        return output if self.quantity == "clean" else self.state.clean(chunk, output)

    def finish(self, chunk: int) -> Tensor:
        self._finish_chunk(chunk, last_reader=self.window.chunks[-1])
        return self.latents[0, :, self.state.frames(chunk)].clone()

    def decode(self, chunk: int, latent: Tensor) -> Tensor:
        """See Generation; each chunk once."""
        if self._frames is None:
            raise RuntimeError("this generation was made without a VAE; give it one to decode frames")
        return self._frames.take(chunk, self.state)

    @property
    def latents(self) -> Tensor:
        """Of the current window, [1, C, f, h, w]."""
        return self.state.latents

    @property
    def window(self) -> Window:
        return self.state.window

    def paper_flops(self, trace: Trace) -> int:
        """A run's operations in the paper's accounting, see flowcache.models.skyreels.flops."""
        return paper_flops(self._flops, trace, self.schedule)

    # Forwards.

    def _run(
        self, branch: Branch, caption: CaptionKv, row: Row, decision: Decision, index: int, work: list[Work]
    ) -> dict[int, Tensor]:
        """One branch's velocity [1, C, b, h, w] of all active chunks, or where outputs of all branches together are
        forecast, of those that computed; adds what it took to ``work``."""
        computed = decision.of_branch(index)
        passes = self._passes(branch, row, computed, decision, index)
        final_end = self._final_end(branch, row.chunks[0])
        runs = [(passes, final_end)]
        if self._compresses_within(branch, row):
            end = row.finished[-1] + 1
            runs = [([p for p in passes if p.chunk < end], final_end), ([p for p in passes if p.chunk >= end], end)]
        hidden: dict[int, Tensor] = {}
        for part, end in runs:
            if part:
                hidden |= self._forward(branch, caption, row, part, end, work)
                branch.awaiting.clear()
        reused = [] if self._forecasts_guided else [chunk for chunk in row.chunks if chunk not in hidden]
        if reused:
            embedded = self._embed(reused).split(self.sampling.causal_block_size)
            for chunk, part in zip(reused, embedded, strict=True):
                hidden[chunk] = part + branch.history.predict(row.step_of(chunk), repeat=chunk in decision.repeat)
            work += [self._flops.reuse(chunk) for chunk in reused]
        if self.method.reuse.motion == "block_output":
            self._outputs[index] = hidden
        chunks = [chunk for chunk in row.chunks if chunk in hidden]
        if not chunks:
            return {}
        times = torch.cat([self.state.times(row, chunk) for chunk in chunks])
        tokens = torch.cat([hidden[chunk] for chunk in chunks])
        velocity = self.network.head(tokens, self._table.embedding[times], self._rows, self._columns)
        return dict(zip(chunks, velocity.split(self.sampling.causal_block_size, dim=2), strict=True))

    def _forward(
        self, branch: Branch, caption: CaptionKv, row: Row, passes: list[_Pass], final_end: int, work: list[Work]
    ) -> dict[int, Tensor]:
        """Hidden tokens of the passes' chunks, but for those only encoded. One of them scores: its queries choose what
        stays of the chunks before ``final_end``, which are finished and whose keys and values are final."""
        scorer = self._scorer(passes, final_end)
        work += (compression := self._begin_compression([branch], final_end, passes[scorer].chunk))
        before = self._embed([p.chunk for p in passes])
        modulation = self._table.modulation[torch.cat([p.times for p in passes])]
        members = [self._member(row, p.chunk, p.subset) for p in passes]
        members[scorer] = replace(members[scorer], scores=bool(compression))
        rope = tuple(torch.cat([table[member.position] for member in members]) for table in self._rope)
        after = self.network.run(before, modulation, caption, members, rope, branch.cache)
        work += [
            self._flops.chunk(p.kind, p.chunk, self._num_keys(branch, member), member.num_tokens)
            for p, member in zip(passes, members, strict=True)
        ]
        hidden = {}
        parts = (tensor.split(self.sampling.causal_block_size) for tensor in (before, after))
        for p, chunk_before, chunk_after in zip(passes, *parts, strict=True):
            if p.kind == "denoise" or p.chunk > row.chunks[-1]:
                hidden[p.chunk] = chunk_after
                if not self._forecasts_guided:
                    step = row.step_of(p.chunk) if p.kind == "denoise" else ChunkStep(p.chunk, -1, WAITING, WAITING)
                    residual = chunk_after - chunk_before
                    if p.subset is not None:
                        computed = p.subset.mask.view(*residual.shape[:2], 1)
                        residual = branch.history.completed(step, residual, computed)
                        hidden[p.chunk] = chunk_before + residual
                    branch.history.update(step, residual, self.state.shown(p.chunk))
        return hidden

    def _scorer(self, passes: Sequence[_Pass], final_end: int) -> int:
        """Whose queries choose what stays: the newest chunk's; as published (fidelity row 11), the first computed one's
        after those that are final."""
        if self.method.kv.select.timing == "published":
            return next((i for i, p in enumerate(passes) if p.kind == "denoise" and p.chunk >= final_end), -1)
        return len(passes) - 1

    def _num_keys(self, branch: Branch, member: Member) -> int:
        if branch.cache is None:
            return (member.last_key - member.first_key + 1) * self._tokens
        return branch.cache.num_keys(member.first_key, member.last_key)

    def _compresses_within(self, branch: Branch, row: Row) -> bool:
        """Whether the published compression comes after the chunks that the row finishes, whose keys must be final."""
        return (
            self.method.kv.select.timing == "published"
            and not self.method.refresh_clean_kv
            and len(row.finished) > 0
            and self._exceeds_budget(branch, row.finished[-1] + 1)
        )

    def _passes(
        self, branch: Branch, row: Row, computed: tuple[int, ...], decision: Decision, index: int
    ) -> list[_Pass]:
        """The chunks of a forward; none where nothing is computed."""
        if not computed:
            return []
        if self._is_cached:
            given = self.window.chunks[: self.window.prefix_chunks]
            encoded = [
                _Pass("prefix" if chunk in given else "refresh", chunk, self.state.clean_times(chunk))
                for chunk in branch.awaiting
            ]
            subsets = (Subset.of(decision.mask(index, chunk), self.network.device) for chunk in computed)
            return encoded + [
                _Pass("denoise", chunk, self.state.times(row, chunk), subset)
                for chunk, subset in zip(computed, subsets, strict=True)
            ]
        if computed != row.chunks:
            raise ValueError(
                f"attention={self.method.attention!r} computes a window as a whole, and {type(self.method.reuse)} only "
                f"chunks {list(computed)} of {list(row.chunks)} in row {row.index}; its whole_rows must say so"
            )
        return [
            _Pass("denoise" if chunk in row.chunks else "context", chunk, self.state.times(row, chunk))
            for chunk in row.visible
        ]

    def _member(self, row: Row, chunk: int, subset: Subset | None) -> Member:
        """A chunk's position in the window, which of its tokens run, and what it attends to."""
        last = chunk
        if self.method.attention == "native":
            last = row.visible[-1]
        origin = self.window.first_chunk
        num_tokens = self._tokens if subset is None else subset.num_tokens
        seen = self._first_seen(row, chunk) - origin, last - origin
        return Member(chunk - origin, num_tokens, *seen, subset=subset)

    def _first_seen(self, row: Row, chunk: int) -> int:
        """The oldest chunk in reach: of the clean ones, with those finishing in this row, the newest few may count."""
        first, limit = self.window.first_chunk, self.sampling.clean_blocks_seen
        if limit is None and self._budget is None:
            return first
        if limit is not None:
            first_dirty = next((c for c in row.chunks if c not in row.finished), chunk)
            first = max(first, min(first_dirty, chunk) - limit)
        if self.method.prefix == "published" and row.index == self.window.rows[0] and chunk in row.chunks:
            return max(first, self.window.generated[0])
        return first

    def _embed(self, chunks: Sequence[int]) -> Tensor:
        return self.network.embed(torch.cat([self.state.shown(chunk) for chunk in chunks], dim=2))

    # Windows.

    def _open(self, index: int) -> None:
        """Begin a window: its noise, its given frames, and nothing remembered of the one before."""
        window = self.schedule.windows[index]
        given = self._hand_over(window) if index else self._first_given
        noise = self._condition_noise[index] if self._condition_noise else None
        self.state = WindowLatents(self.sampling, self.schedule, window, self._noise[index], given, noise)
        prefix = window.chunks[: window.prefix_chunks]
        self.first_cached = window.first_chunk
        for branch in self.branches:
            branch.history.clear()
            branch.awaiting.clear()
            if branch.cache is not None:
                branch.cache.clear()
                branch.awaiting += prefix
                for chunk in prefix:
                    branch.cache.finish(chunk - window.first_chunk, is_final=False)
        if self._frames is not None:
            shown = given[:, :, : len(prefix) * self.sampling.causal_block_size] if prefix else None
            with self.clock("vae"):
                self._frames.open(shown, is_first=index == 0)

    def _hand_over(self, following: Window) -> Tensor:
        """Latents of the last frames, for the window that begins with them."""
        if self._frames is None:
            return self.latents[:, :, -following.prefix_chunks * self.sampling.causal_block_size :].clone()
        with self.clock("vae"):
            return self._frames.last_latents(self.state)
