"""What a reuse policy is: it decides row by row which active chunks compute; all others take a forecast."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from flowcache.part import Part
from flowcache.reuse.distance import ChunkDistance
from flowcache.schedule import Row, Schedule

Figure = Literal["output", "output_change", "input_change", "forecast_error"]


@dataclass(frozen=True)
class Decision:
    """What happens to a row's active chunks.

    compute: chunks that run through the network, oldest first; every other active chunk takes its forecast.
    tokens: of computed chunks, those of which only some tokens compute, and which: bool [G, T] on the host, T tokens in
        each of G guidance branches (G = 1: in all branches the same). The others take their forecast.
    repeat: of the others, those that take their last computed output once more, whatever the forecast.
    held: chunks that do not move at all, and isolated: computed chunks that attend only to themselves. Both exist for
        the published TeaCache on MAGI-1 (see baselines/uniform.py) and are empty for every sound policy.
    oldest_keys: chunks computed in part that attend to what the oldest active chunk attends to, and not to themselves;
        for the published MotionCache on MAGI-1 (see baselines/motioncache.py), and empty for every sound policy.
    branches: the chunks to compute in each guidance branch, where they differ (``compute`` is then the first of them).
    """

    compute: tuple[int, ...]
    tokens: Mapping[int, Tensor] = field(default_factory=dict)
    repeat: tuple[int, ...] = ()
    held: tuple[int, ...] = ()
    isolated: tuple[int, ...] = ()
    oldest_keys: tuple[int, ...] = ()
    branches: tuple[tuple[int, ...], ...] = ()

    def of_branch(self, branch: int) -> tuple[int, ...]:
        """Chunks to compute in a guidance branch."""
        return self.branches[branch] if self.branches else self.compute

    def mask(self, branch: int, chunk: int) -> Tensor | None:
        """Of a chunk computed in a guidance branch the tokens that compute, bool [T] on the host; None is all."""
        if chunk not in self.tokens:
            return None
        masks = self.tokens[chunk]
        return masks[branch if len(masks) > 1 else 0]

    def share(self, chunk: int) -> float:
        """Of the tokens of a computed chunk, that compute, in the mean of guidance branches."""
        return self.tokens[chunk].sum().item() / self.tokens[chunk].numel() if chunk in self.tokens else 1.0


@dataclass(frozen=True)
class Report:
    """What computing a chunk showed, against its last computed step; NaN where it had none, or nobody asked.

    output, output_change, input_change: mean absolute values of the output that is forecast (of the first guidance
        branch, where each is forecast by itself), of its change, and of the latent's change.
    forecast_error: mean absolute difference of the output and what the forecast would have given for it.
    motion: float32 [G, f, P] on the host, see flowcache.reuse.motion; None where nobody asked.
    """

    output: float = float("nan")
    output_change: float = float("nan")
    input_change: float = float("nan")
    forecast_error: float = float("nan")
    motion: Tensor | None = None


@dataclass(kw_only=True)
class ReusePolicy(Part, ABC):
    """Decides row by row.

    Attributes:
        distance: the distance that it needs ("embedded_latent", "latent", ...); None if it decides without one.
        fingerprint_tokens: its distances are against the chunk before at the same own step, by so many tokens
            (flowcache.reuse.fingerprint); None for those against the chunk's own row before.
        token_distances: its distances are told for every token, too.
        report: the figures of ``Report`` that it needs; none costs nothing.
        motion: the kind of frame differences that it needs of every active chunk, "latent" or "block_output"
            (flowcache.reuse.motion); None costs nothing.
        motion_across_windows: see ``MotionMeter``.
        uses: the fields of Decision, beyond ``compute``, that it may fill; a model that cannot follow refuses it.
        needs_window: it may skip a chunk's first step, with what was computed of it while it waited; only attention
            without a cache does that.
        skips: it may skip something; False only for a policy that is there to compute everything.
        accumulated: what each chunk has accumulated after the last decision, for the trace.
    """

    distance: ClassVar[str | None] = None
    fingerprint_tokens: ClassVar[int | None] = None
    token_distances: ClassVar[bool] = False
    report: ClassVar[tuple[Figure, ...]] = ()
    motion: ClassVar[str | None] = None
    motion_across_windows: ClassVar[bool] = False
    uses: ClassVar[tuple[str, ...]] = ()
    needs_window: ClassVar[bool] = False
    skips: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.accumulated: dict[int, float] = {}

    @property
    def looks_at(self) -> str | None:
        """What it decides by beyond the schedule, in words; None where it needs no numbers, and so no weights."""
        if self.distance is not None:
            return f"{self.distance} distances"
        return "what computing showed" if self.report or self.motion else None

    @abstractmethod
    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        """``distances`` holds the chunks that there is something to measure against. A chunk's first step must compute,
        for there is nothing to forecast from (but see ``needs_window``)."""

    def wants_motion(self, row: Row) -> bool:
        """Whether the motion after a row that was just decided is needed. Chunks after one that the row finishes are
        compared with it."""
        return self.motion is not None

    def observe(self, row: Row, reports: Mapping[int, Report]) -> None:
        """What computing showed of each chunk computed in ``row``, and with ``motion`` of every other active one too.
        Called right before the next row is decided, since these numbers come to the host with that row's distances, in
        one read."""

    def check_schedule(self, schedule: Schedule) -> None:
        """Refuse, before any work, options that do not go with a generation's schedule. Raises ValueError."""

    def whole_rows(self, schedule: Schedule) -> bool:
        """Whether it computes all of a row's chunks or none, in every row: what attention without a cache asks for."""
        return False
