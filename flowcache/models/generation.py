"""What every model's generation shares: caches and when they are compressed, refreshes, histories of outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from flowcache.clock import SectionClock
from flowcache.forecast.history import OutputHistory
from flowcache.kernels import AUTO
from flowcache.kv.budget import Budget, longest_held, plan_budget
from flowcache.kv.cache import KvCache
from flowcache.kv.heads import HeadCache
from flowcache.kv.rotary import RotaryPairs
from flowcache.kv.store.base import Sizes
from flowcache.method import Method
from flowcache.models.capabilities import Capabilities, check_method, check_parallel
from flowcache.parallel import ALONE, Parallel
from flowcache.schedule import Schedule
from flowcache.trace import Work

CountCompression = Callable[[int, int], Work]  # of a chunk, whose queries choose, and of a layer's FLOPs


@dataclass(frozen=True)
class CacheShape:
    """Of one guidance branch's cache.

    Attributes:
        num_layers, num_heads, head_channels: the network's layers, key-value heads and channels of a head.
        query_heads: its query heads.
        tokens_per_frame, tokens_per_chunk: latent frames' and chunks'.
        num_chunks: most chunks that are held at once.
        dtype, device: of keys and values.
        rotary: how keys carry their position.
    """

    num_layers: int
    num_heads: int
    head_channels: int
    query_heads: int
    tokens_per_frame: int
    tokens_per_chunk: int
    num_chunks: int
    dtype: torch.dtype
    device: torch.device | str
    rotary: RotaryPairs


@dataclass
class Branch:
    """One guidance branch: its cache (None where nothing is cached), the outputs that its forecasts look back on, and
    the finished or given chunks whose keys and values are still to be encoded, oldest first; and the rows since its
    selector looked."""

    cache: KvCache | None
    history: OutputHistory
    awaiting: list[int] = field(default_factory=list)
    unseen_rows: int = 0


class CachingGeneration:
    """The base of the models' generations (flowcache.models.base.Generation).

    Chunks are counted through the video; caches hold those of the window that began with ``first_cached``.

    Args:
        method: refused where it does not go with the schedule, the model or the kernel. Raises ValueError.
        schedule: of the generation.
        able: what the model can do.
        shape: of a cache.
        num_branches: guidance branches.
        count_compression: how the model writes a layer's scoring down as work.
        attention_backend: that the network runs by.
        parallel: this process's part in the video, refused where the method or the model does not go with it.

    Attributes:
        branches: those that this process holds, of ``num_branches``.
        scores_after_rows: the published timing of compression scores after a row, by queries remembered from it.
    """

    scores_after_rows: ClassVar[bool] = False

    def __init__(
        self,
        method: Method,
        schedule: Schedule,
        able: Capabilities,
        shape: CacheShape,
        num_branches: int,
        count_compression: CountCompression,
        attention_backend: str = AUTO,
        parallel: Parallel = ALONE,
    ) -> None:
        frame, chunk = shape.tokens_per_frame, shape.tokens_per_chunk
        asked = 0 if method.kv.budget is None else method.kv.select.num_queries(frame, chunk)
        check_method(method, schedule, able, attention_backend, asked)
        check_parallel(parallel, method, able, num_branches, shape.num_heads, frame)
        self.method, self.schedule, self.able = method, schedule, able
        self.clock = SectionClock("cpu")  # until the sampler gives its own
        self.first_cached = 0
        self.parallel, self.num_branches = parallel, num_branches
        self._count_compression = count_compression
        # Heads are shared out by key-value heads, each with the query heads that read it.
        self._head_shares = shares = parallel.world if parallel.by_head else 1
        self._shape = replace(shape, num_heads=shape.num_heads // shares, query_heads=shape.query_heads // shares)
        self._is_cached = method.attention == "cached" or not able.cacheless
        remembers = method.kv.select.timing == "published" and self.scores_after_rows
        self._budget = plan_budget(
            method.kv.budget,
            method.kv.select,
            schedule,
            frame,
            chunk,
            method.refresh_clean_kv,
            lambda budget: num_branches * shares * self._new_cache(budget, "meta").bytes_allocated,
            shape.device,
            query_heads=self._shape.query_heads if remembers else 0,
            devices=parallel.world,
        )
        self.quantity = able.quantity(method.forecast)
        self.branches = [
            Branch(
                self._new_cache(self._budget, shape.device) if self._is_cached else None,
                OutputHistory(
                    method.forecast.fresh(),
                    method.reuse.report if index == 0 else (),
                    schedule.jumps,
                    self.follows,
                ),
            )
            for index in range(len(parallel.held(range(num_branches))))
        ]

    def _new_cache(self, budget: Budget | None, device: torch.device | str) -> KvCache:
        shape = self._shape
        if self.method.kv.select.by_head:
            frames = shape.tokens_per_chunk // shape.tokens_per_frame
            return self._head_cache(range(0, (shape.num_chunks + 1) * frames, frames), shape.tokens_per_chunk, device)
        sizes = (shape.num_layers, shape.num_heads, shape.head_channels, shape.tokens_per_chunk, shape.num_chunks)
        options = {"dtype": shape.dtype, "device": device, "rotary": shape.rotary, "policy": self.method.kv}
        return KvCache(*sizes, **options, budget=budget, open_chunks=self._open_chunks)

    def _head_cache(self, starts: Sequence[int], tokens_per_position: int, device: torch.device | str) -> HeadCache:
        """Of a network whose layers attend through their cache; ``starts`` as of HeadCache."""
        shape = self._shape
        sizes = (shape.num_layers, shape.num_heads, shape.head_channels, tokens_per_position, shape.tokens_per_frame)
        together = max(row.chunks[-1] + 1 - row.chunks[0] for row in self.schedule.rows)
        return HeadCache(*sizes, starts, together, self.method.kv, dtype=shape.dtype, device=device)

    @property
    def _open_chunks(self) -> int:
        """Most chunks at once whose keys are not final, or not settled: under a budget they wait for the next one."""
        refreshes = self.method.refresh_clean_kv and self.method.kv.budget is not None
        return longest_held(self.schedule, 0, 1, refreshes)

    @property
    def tokens_per_frame(self) -> int:
        """Of a latent frame."""
        return self._shape.tokens_per_frame

    # What the sampler asks of every model alike.

    def follows(self, chunk: int) -> bool:
        return True

    def report(self) -> tuple[tuple[int, ...], Tensor] | None:
        return self.branches[0].history.take_report()

    def output(self, chunk: int) -> Tensor:
        """An active chunk's last computed output, of what is forecast; where each guidance branch forecasts by itself,
        the first one's."""
        return self.branches[0].history.newest(chunk)

    def outputs(self, chunk: int) -> list[Tensor]:
        """The same of every guidance branch that forecasts by itself; one where all make it together."""
        return [branch.history.newest(chunk) for branch in self.branches if branch.history.knows(chunk)]

    @property
    def kv_tokens(self) -> int:
        return self.caches[0].num_tokens if self.caches else 0

    @property
    def kv_bytes_by_use(self) -> Sizes:
        total: Counter[str] = Counter()
        for cache in self.caches:
            total.update(cache.sizes)
        return {use: size * self.parallel.world for use, size in total.items() if size}  # all processes' together

    @property
    def kv_bytes_allocated(self) -> int:
        return sum(self.kv_bytes_by_use.values())

    @property
    def kv_bits(self) -> float:
        return self.caches[0].bits_a_number if self.caches else 0.0

    @property
    def kv_bytes_used(self) -> int:
        return sum(cache.bytes_used for cache in self.caches) * self.parallel.world

    @property
    def kv_unusable_kept(self) -> int:
        return self.parallel.total(sum(cache.unusable_kept for cache in self.caches), self._shape.device)

    @property
    def kv_compressions(self) -> int:
        return sum(cache.num_compressions for cache in self.caches)

    @property
    def forecast_bytes_peak(self) -> int:
        apart = self.parallel.by_branch and self.quantity not in self.able.guided
        return sum(branch.history.bytes_peak for branch in self.branches) * (self.num_branches if apart else 1)

    @property
    def forecast_corrections(self) -> int:
        return sum(branch.history.corrections for branch in self.branches)

    @property
    def forecast_from(self) -> int:
        return max(branch.history.forecast_from for branch in self.branches)

    # Branches that other processes compute.

    def _of_all_branches(self, own: list[dict[int, Tensor]], work: list[Work]) -> list[Mapping[int, Tensor]]:
        """Every branch's output by chunk, each [1, C, b, h, w], of those that this process holds; ``work``, which is
        what these took, becomes what all took: they compute the same chunks."""
        if not self.parallel.by_branch:
            return own
        work *= self.num_branches
        (outputs,) = own
        if not outputs:
            return [{}] * self.num_branches
        sizes = [output.shape[2] for output in outputs.values()]
        found = self.parallel.gather(torch.cat([*outputs.values()], dim=2))
        return [dict(zip(outputs, whole.split(sizes, dim=2), strict=True)) for whole in found]

    def _share_chunk(self, chunk: int) -> None:
        """Put the entries of a chunk that the last branch's cache holds into all others."""
        source = self.caches[-1]
        for cache in self.caches[:-1]:
            cache.copy_chunk_from(source, chunk)
        if self.parallel.by_branch:
            last = self.num_branches - 1
            for layer in range(self._shape.num_layers):
                entries = torch.stack(source.read(layer, chunk, chunk))
                self.parallel.broadcast(entries, last)
                if self.parallel.rank != last:
                    source.write(layer, chunk, *entries)

    # Estimates of clean latents, for a policy that measures them.

    @property
    def _measures_estimates(self) -> bool:
        return self.method.reuse.distance == "clean"

    def _keep_estimate(self, chunk: int, clean: Tensor) -> None:
        """Of a chunk whose step is being taken, [1, C, b, h, w]; it must never change."""
        if self._measures_estimates:
            self.branches[0].history.estimates[chunk] = clean

    def _estimates(self, chunks: Sequence[int], latents: Sequence[Tensor]) -> Tensor:
        """As features [N, b, h, w, C] of chunks, whose latents are [1, C, b, h, w]: NaN before a first step."""
        kept, pairs = self.branches[0].history.estimates, zip(chunks, latents, strict=True)
        each = [kept[chunk] if chunk in kept else torch.full_like(latent, torch.nan) for chunk, latent in pairs]
        return torch.cat(each).movedim(1, -1)

    # Caches.

    @property
    def caches(self) -> list[KvCache]:
        return [branch.cache for branch in self.branches if branch.cache is not None]

    def _set_clock(self, clock: SectionClock) -> None:
        self.clock = clock
        for cache in self.caches:
            cache.clock = clock

    def _finish_chunk(self, chunk: int, last_reader: int) -> None:
        """Forget a finished chunk's outputs; its keys are clean, and are refreshed if a chunk up to ``last_reader``
        still reads them.

        The refresh rides along with the next row that computes: nothing reads the entries before.
        """
        for branch in self.branches:
            branch.history.drop(chunk)
            if branch.cache is not None:
                is_read = chunk < last_reader
                for place in self._places(chunk):
                    branch.cache.finish(place, is_final=is_read and not self.method.refresh_clean_kv)
                if self.method.refresh_clean_kv and is_read:
                    branch.awaiting.append(chunk)

    def _places(self, chunk: int) -> range:
        """A chunk in the positions of its cache."""
        return range(chunk - self.first_cached, chunk - self.first_cached + 1)

    def _final_end(self, branch: Branch, oldest_active: int) -> int:
        """Chunks before it were finished before this row, and their keys and values are final."""
        return branch.awaiting[0] if branch.awaiting else oldest_active

    def _exceeds_budget(self, branch: Branch, end: int) -> bool:
        """Whether the chunks before ``end``, which are final, hold more than the budget keeps."""
        return branch.cache is not None and branch.cache.exceeds_budget(end - self.first_cached)

    def _begin_compression(self, branches: Sequence[Branch], end: int, scorer: int) -> list[Work]:
        """Begin to compress the chunks before ``end`` by the queries of chunk ``scorer``, in those branches that hold
        more of them than the budget keeps; in others to observe them, where the selector does."""
        work, shape, select = [], self._shape, self.method.kv.select
        for branch in branches:
            length = 0
            if self._exceeds_budget(branch, end):
                length = branch.cache.begin_compression(end - self.first_cached, scorer - self.first_cached)
            elif self._looks(branch):
                length = branch.cache.begin_observation(end - self.first_cached, scorer - self.first_cached)
            if length:
                num_queries = select.num_queries(shape.tokens_per_frame, shape.tokens_per_chunk)
                heads = (shape.query_heads * self._head_shares, shape.num_heads * self._head_shares)
                flops = select.flops(*heads, shape.head_channels, num_queries, length)
                work.append(self._count_compression(scorer, flops))
        return work

    def _looks(self, branch: Branch) -> bool:
        """Whether the selector looks at a row that compresses nothing."""
        select = self.method.kv.select
        if not select.observes or self._budget is None:
            return False
        branch.unseen_rows = (branch.unseen_rows + 1) % select.look_every
        return branch.unseen_rows == 0
