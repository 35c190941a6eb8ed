"""What happened, row by row and chunk by chunk: the source of every table and figure about reuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Literal

Action = Literal["compute", "reuse", "forecast", "held"]


@dataclass(frozen=True)
class Work:
    """One chunk's pass through the network.

    kind: "denoise", "near_clean" (extra copy of the oldest chunk), "context" (waiting, finished and given chunks that a
        forward without cache computes beside the active ones), "refresh" (a finished chunk's keys and values),
        "recache" (those of all finished chunks in reach, for a new prompt), "prefix" (given chunks' keys and values),
        "reuse" (what a reusing chunk still computes), "compression" (scoring finished chunks' keys, by the queries of
        ``chunk``), and once a generation "caption" (cross-attention keys and values) and "time" (time embeddings).
    gemm_flops, self_attention_flops, cross_attention_flops: multiply-adds count 2.
    """

    kind: str
    chunk: int
    gemm_flops: int
    self_attention_flops: int
    cross_attention_flops: int

    @property
    def flops(self) -> int:
        return self.gemm_flops + self.self_attention_flops + self.cross_attention_flops


@dataclass(frozen=True)
class TraceEntry:
    """One chunk in one row.

    action: of what does not compute, "reuse" takes the last computed output as it is, by the policy's decision
    (``repeated``) or because the forecast holds it, and "forecast" what any other forecast gives. Traces from before
    there was "forecast" say "reuse" for it, and know no ``repeated``.
    distance is None where it was not measured, and cosine where that was not against the chunk before; accumulated is
    the policy's after its decision; flops are those of the chunk's denoising forward (0 if it reused); kv_tokens are
    the tokens the cache holds after the row, per layer and head, and kv_bytes what all branches' caches hold them in
    (traces from before do not say, 0); token_mask tells that only some of the chunk's tokens computed.
    """

    row: int
    chunk: int
    step: int
    t: float
    action: Action
    distance: float | None
    accumulated: float | None
    flops: int
    kv_tokens: int
    token_mask: bool = False
    repeated: bool = False
    cosine: float | None = None
    kv_bytes: int = 0


@dataclass
class Trace:
    """One generation's entries and all of its work."""

    entries: list[TraceEntry] = field(default_factory=list)
    work: list[tuple[int, Work]] = field(default_factory=list)  # (row, work); row -1 is before the first row
    kv_bytes_allocated: int = 0
    kv_bytes_by_use: dict[str, int] = field(default_factory=dict)  # of those allocated (flowcache.kv.store.base)
    kv_bytes_used_peak: int = 0
    kv_bits: float = 0.0  # of a number of a finished chunk
    # Known at the end.
    kv_unusable_kept: int = 0  # see KvCache
    forecast_bytes_peak: int = 0  # outputs that forecasts look back on
    remarks: list[str] = field(default_factory=list)  # parts of the method that had no effect

    @property
    def flops(self) -> int:
        """Executed by the transformer, all kinds together."""
        return sum(work.flops for _, work in self.work)

    def flops_by_kind(self) -> dict[str, int]:
        total: Counter[str] = Counter()
        for _, work in self.work:
            total[work.kind] += work.flops
        return dict(total)

    def flops_by_part(self) -> dict[str, int]:
        """GEMM, self-attention and cross-attention."""
        parts = ("gemm_flops", "self_attention_flops", "cross_attention_flops")
        return {part: sum(getattr(work, part) for _, work in self.work) for part in parts}

    @property
    def computed_fraction(self) -> float:
        """Chunk steps that were computed, over all chunk steps."""
        return sum(entry.action == "compute" for entry in self.entries) / max(1, len(self.entries))

    def computed_rows(self) -> list[list[int]]:
        """The chunks computed in each row: what ``Replay`` takes."""
        return self._rows(lambda entry: entry.action == "compute")

    def repeated_rows(self) -> list[list[int]]:
        """The chunks that took their last output once more by decision, in each row: what ``Replay`` takes, too."""
        return self._rows(lambda entry: entry.repeated)

    def records(self) -> Iterable[dict]:
        """Entries as plain dictionaries, for a data frame."""
        return (asdict(entry) for entry in self.entries)

    def _rows(self, chosen: Callable[[TraceEntry], bool]) -> list[list[int]]:
        rows: list[list[int]] = [[] for _ in range(1 + max((entry.row for entry in self.entries), default=-1))]
        for entry in self.entries:
            if chosen(entry):
                rows[entry.row].append(entry.chunk)
        return rows
