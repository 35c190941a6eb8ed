"""When each chunk takes which of its denoising steps: a small immutable table, worked out before the first forward.

A *row* is one pass of the sampler: every active chunk takes one of its own steps. MAGI-1 staggers its chunks by a
quarter of the steps and slides a window of four (SandAI-org/MAGI-1: inference/pipeline/video_generate.py). SkyReels-V2
starts each chunk ``ar_step`` rows after the one before, and makes a long video window by window, each beginning with
the end of the one before (SkyworkAI/SkyReels-V2: skyreels_v2_infer/pipelines/diffusion_forcing_pipeline.py). Causal Wan
makes one chunk after another, or starts one in every row (guandeh17/Self-Forcing, TencentARC/RollingForcing).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

SCHEDULES = ("sd3", "square", "piecewise", "identity")


def timesteps(num_steps: int, schedule: str = "sd3", shift: float = 3.0, shortcut: str = "8,16,16") -> Tensor:
    """Time table of one chunk: float32 [num_steps + 1], rising from 0 (noise) to 1 (clean).

    ``sd3`` squares an even grid and shifts it towards noise, x -> (x/s) / (1 - (1 - 1/s) x); ``square`` only squares;
    ``piecewise`` spends 7/8 of the steps on the first half; ``identity`` is even. ``num_steps`` = 12 takes 12 of the 16
    steps of a finer grid, as distilled checkpoints were trained; ``shortcut`` says which ("8,16,16" or "16,16,8").
    """
    if num_steps == 12:
        even = torch.linspace(0, 1, 5, dtype=torch.float32)
        quarter = even / 4
        kept = quarter[:3] if shortcut == "16,16,8" else quarter[[0, 2, 3]]
        t = (even[:, None] + kept).flatten()[: num_steps + 1]
    else:
        t = torch.linspace(0, 1, num_steps + 1, dtype=torch.float32)
    if schedule == "sd3":
        inverse = 1.0 / shift
        t = t**2
        return inverse * t / (1 + (inverse - 1) * t)
    if schedule == "square":
        return t**2
    if schedule == "piecewise":
        return torch.where(t < 0.875, t * (0.5 / 0.875), 0.5 + (t - 0.875) * (0.5 / (1 - 0.875)))
    if schedule == "identity":
        return t
    raise ValueError(f"unknown time schedule {schedule!r}; there are {', '.join(SCHEDULES)}")


def step_intervals(num_steps: int, shortcut: str = "8,16,16") -> Tensor:
    """How many steps of the finest grid each step spans: float32 [num_steps]; only counts of thirds vary."""
    if num_steps % 3:
        return torch.ones(num_steps, dtype=torch.float32)
    pattern = [1.0, 1.0, 2.0] if shortcut == "16,16,8" else [2.0, 1.0, 1.0]
    return torch.tensor(pattern * (num_steps // 3), dtype=torch.float32)


@dataclass(frozen=True)
class ChunkStep:
    """One chunk's step in a row: its own step index, and the times before and after it.

    Times are the network's own: 0 (noise) to 1 (clean) on MAGI-1, timesteps 999 (noise) to 0 (clean) on SkyReels-V2,
    1000 to 0 and no whole numbers on causal Wan.
    """

    chunk: int
    step: int
    t: float
    t_next: float


@dataclass(frozen=True)
class Row:
    """One pass of the sampler: the active chunks' steps, oldest chunk first, and the chunks it finishes.

    ``interval`` is how many steps of the finest grid the row's steps span (an input of distilled networks).
    ``window`` is the index of the row's window, and ``visible`` the chunks that a network without a cache is given in
    it, waiting and finished ones included (None where there is always a cache).
    """

    index: int
    steps: tuple[ChunkStep, ...]
    finished: tuple[int, ...]
    interval: float = 1.0
    window: int = 0
    visible: range | None = None

    @property
    def chunks(self) -> tuple[int, ...]:
        return tuple(step.chunk for step in self.steps)

    @property
    def oldest(self) -> ChunkStep:
        return self.steps[0]

    def step_of(self, chunk: int) -> ChunkStep:
        return self.steps[chunk - self.steps[0].chunk]


@dataclass(frozen=True)
class Window:
    """Chunks that are denoised together, knowing of those before only the ``prefix_chunks`` that they begin with.

    ``rows`` are the indices of its rows.
    """

    first_chunk: int
    num_chunks: int
    prefix_chunks: int
    rows: range

    @property
    def chunks(self) -> range:
        return range(self.first_chunk, self.first_chunk + self.num_chunks)

    @property
    def generated(self) -> range:
        """Its chunks without those it was given."""
        return self.chunks[self.prefix_chunks :]


@dataclass(frozen=True)
class Schedule:
    """All rows of a generation. Chunks below ``prefix_chunks`` are given, never denoised.

    ``num_steps`` are a chunk's; a schedule may give single chunks others, see ``steps_of``.
    """

    num_chunks: int
    prefix_chunks: int
    num_steps: int
    window_size: int
    rows: tuple[Row, ...]
    windows: tuple[Window, ...]

    def steps_taken(self, row: Row, chunk: int) -> int:
        """The step that a chunk of the row's window takes in it; -1 for a waiting chunk, num_steps for a clean one."""
        if chunk < row.chunks[0]:
            return self.num_steps
        return row.step_of(chunk).step if chunk <= row.chunks[-1] else -1

    def steps_of(self, chunk: int) -> int:
        """How many steps a chunk of it takes, ``num_steps`` but for single ones."""
        return self._own_steps.get(chunk, self.num_steps)

    @cached_property
    def _own_steps(self) -> dict[int, int]:
        # A chunk that two windows share is denoised in the first.
        return {step.chunk: step.step + 1 for row in self.rows for step in row.steps if step.chunk in row.finished}

    def events(self, chunk: int) -> dict[int, int]:
        """The chunk's own steps right before which an older chunk finished, whose keys are clean from then on, and how
        many chunks older that was: 1 is its neighbour. Empty for a chunk with none before it in its window."""
        return self._events.get(chunk, {})

    def jumps(self, chunk: int) -> tuple[int, ...]:
        """Of the chunk's events those of its neighbour: its output jumps there, whatever the step's length. Measured on
        embedded MAGI-1, by 8 to 12 % of the velocity, where other steps change it by 1 %."""
        return tuple(step for step, older in self.events(chunk).items() if older == 1)

    @cached_property
    def _events(self) -> dict[int, dict[int, int]]:
        events: dict[int, dict[int, int]] = {}
        before: Row | None = None
        for row in self.rows:
            if before is not None and before.window == row.window:
                for finished in before.finished:
                    for step in (step for step in row.steps if step.step > 0):
                        own = events.setdefault(step.chunk, {})
                        own[step.step] = min(step.chunk - finished, own.get(step.step, step.chunk))
            before = row
        return events

    @property
    def num_chunk_steps(self) -> int:
        """Chunk forwards if nothing is reused."""
        return sum(len(row.steps) for row in self.rows)


def staged_schedule(
    num_chunks: int,
    times: Tensor,
    window_size: int = 4,
    prefix_chunks: int = 0,
    intervals: Tensor | None = None,
) -> Schedule:
    """MAGI-1's staged window: chunk i starts in stage i - prefix_chunks, a stage is num_steps / window_size rows.

    Args:
        num_chunks: chunks of the video, the prefix included.
        times: float32 [num_steps + 1], from ``timesteps``.
        window_size: most chunks active at once.
        prefix_chunks: whole chunks given as prefix.
        intervals: float32 [num_steps], from ``step_intervals``.
    """
    num_steps = len(times) - 1
    if window_size < 1:
        raise ValueError(f"window_size={window_size} must be at least 1 chunk")
    if num_steps < window_size or num_steps % window_size:
        raise ValueError(
            f"num_steps={num_steps} does not divide into window_size={window_size} equal stages; "
            f"choose a multiple of {window_size}, such as {max(1, round(num_steps / window_size)) * window_size}"
        )
    if not 0 <= prefix_chunks < num_chunks:
        raise ValueError(
            f"a prefix of {prefix_chunks} chunks leaves nothing to generate in a video of {num_chunks}; "
            "ask for more frames"
        )
    t = times.tolist()
    steps_per_stage = num_steps // window_size
    rows = []
    for stage in range(num_chunks - prefix_chunks + window_size - 1):
        newest = prefix_chunks + stage
        active = range(max(prefix_chunks, newest - window_size + 1), min(newest, num_chunks - 1) + 1)
        for sub_step in range(steps_per_stage):
            own = [(chunk, (newest - chunk) * steps_per_stage + sub_step) for chunk in active]
            steps = tuple(ChunkStep(chunk, step, t[step], t[step + 1]) for chunk, step in own)
            finished = tuple(chunk for chunk, step in own if step == num_steps - 1)
            # Upstream looks the interval up by the step within the stage, not by the chunk's own step.
            interval = 1.0 if intervals is None else float(intervals[sub_step])
            rows.append(Row(len(rows), steps, finished, interval))
    window = Window(0, num_chunks, prefix_chunks, range(len(rows)))
    return Schedule(num_chunks, prefix_chunks, num_steps, window_size, tuple(rows), (window,))


def diffusion_forcing_schedule(
    num_chunks: int,
    times: Sequence[float],
    ar_step: int,
    window_chunks: int,
    overlap_chunks: int = 0,
    prefix_chunks: int = 0,
) -> Schedule:
    """SkyReels-V2's schedule: windows one after another, the last as long as is needed, each a staggered diagonal.

    Args:
        num_chunks: chunks of the video, the prefix included.
        times: timesteps of the denoising steps, falling; after the last one a chunk is clean (0).
        ar_step: rows from a chunk's first step to its successor's; 0 denoises all chunks of a window in step.
        window_chunks: most chunks of a window.
        overlap_chunks: chunks at the end of a window that the next one begins with, given.
        prefix_chunks: chunks that the first window is given.
    """
    if num_chunks > window_chunks and not 0 < overlap_chunks < window_chunks:
        raise ValueError(
            f"windows of {window_chunks} chunks cannot overlap by {overlap_chunks}: a video of {num_chunks} chunks "
            f"needs an overlap of 1 to {window_chunks - 1}, or a longer window"
        )
    windows: list[Window] = []
    rows: list[Row] = []
    first, given = 0, prefix_chunks
    while True:
        length = min(window_chunks, num_chunks - first)
        new = staggered_rows(length, times, ar_step, given, first_chunk=first, first_row=len(rows), window=len(windows))
        windows.append(Window(first, length, given, range(len(rows), len(rows) + len(new))))
        rows += new
        if first + length == num_chunks:
            return Schedule(num_chunks, prefix_chunks, len(times), window_chunks, tuple(rows), tuple(windows))
        first, given = first + length - overlap_chunks, overlap_chunks


def sequential_schedule(
    num_chunks: int, times: Sequence[float], prefix_chunks: int = 0, first_times: Sequence[float] | None = None
) -> Schedule:
    """Self-Forcing's schedule: one chunk after another, each taking all of its steps before the next one starts.

    Args:
        num_chunks: chunks of the video, the prefix included.
        times: timesteps of a chunk's steps, falling; after the last one it is clean (0).
        prefix_chunks: chunks that are given.
        first_times: those of the first chunk that is not given, where it has its own (thu-ml/Causal-Forcing).
    """
    if not 0 <= prefix_chunks < num_chunks:
        raise ValueError(
            f"a prefix of {prefix_chunks} chunks leaves nothing to generate in a video of {num_chunks}; "
            "ask for more frames"
        )
    rows: list[Row] = []
    for chunk in range(prefix_chunks, num_chunks):
        own = first_times if first_times and chunk == prefix_chunks else times
        for step, (t, t_next) in enumerate(zip(own, [*own[1:], 0.0], strict=True)):
            finished = (chunk,) if step == len(own) - 1 else ()
            rows.append(Row(len(rows), (ChunkStep(chunk, step, t, t_next),), finished))
    window = Window(0, num_chunks, prefix_chunks, range(len(rows)))
    return Schedule(num_chunks, prefix_chunks, len(times), 1, tuple(rows), (window,))


def rolling_schedule(num_chunks: int, times: Sequence[float], prefix_chunks: int = 0) -> Schedule:
    """Rolling Forcing's schedule: a chunk starts in every row, so that as many as there are steps run together, each at
    its own. Arguments as of ``sequential_schedule``."""
    return diffusion_forcing_schedule(num_chunks, times, 1, num_chunks, prefix_chunks=prefix_chunks)


def staggered_rows(
    num_chunks: int,
    times: Sequence[float],
    ar_step: int,
    prefix_chunks: int = 0,
    visible_chunks: int | None = None,
    first_chunk: int = 0,
    first_row: int = 0,
    window: int = 0,
) -> list[Row]:
    """Rows of one window; see ``diffusion_forcing_schedule``.

    Args:
        visible_chunks: most chunks that the network is given at once (None: all). Where the window is longer, the
            visible ones slide: they make room for the next chunk when it starts.
        first_chunk, first_row, window: indices of the window's first chunk, its first row, and its own.
    """
    num_steps = len(times)
    visible_chunks = num_chunks if visible_chunks is None else visible_chunks
    if not 0 <= prefix_chunks < num_chunks:
        raise ValueError(
            f"a prefix of {prefix_chunks} chunks leaves nothing to generate in a window of {num_chunks}; "
            "ask for more frames"
        )
    if ar_step < 0:
        raise ValueError(f"ar_step={ar_step} must be at least 0 rows (0 denoises all chunks in step)")
    if visible_chunks < num_chunks and ar_step * visible_chunks < num_steps:
        raise ValueError(
            f"ar_step={ar_step} is too small for {num_chunks} chunks of which {visible_chunks} are visible: "
            f"{num_steps} steps need at least {math.ceil(num_steps / visible_chunks)}"
        )
    # A chunk never waits longer than its predecessor takes.
    delay = min(ar_step, num_steps)
    ends = [*times, 0]
    last_visible = visible_chunks
    rows = []
    for r in range(num_steps + (num_chunks - prefix_chunks - 1) * delay):
        own = [(chunk, r - (chunk - prefix_chunks) * delay) for chunk in range(prefix_chunks, num_chunks)]
        steps = tuple(
            ChunkStep(first_chunk + chunk, step, ends[step], ends[step + 1])
            for chunk, step in own
            if 0 <= step < num_steps
        )
        if last_visible < num_chunks and steps[-1].chunk - first_chunk >= last_visible:
            last_visible += 1
        rows.append(
            Row(
                first_row + r,
                steps,
                tuple(step.chunk for step in steps if step.step == num_steps - 1),
                window=window,
                visible=range(first_chunk + last_visible - visible_chunks, first_chunk + last_visible),
            )
        )
    return rows
