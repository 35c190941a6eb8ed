"""One video of a hooked pipeline: its rows, what the policy decides in each, and what is written down of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowcache.integrations.diffusers.windows import Windows
from flowcache.method import Method
from flowcache.models.capabilities import Capabilities
from flowcache.reuse.base import Decision
from flowcache.sampler import IdlePart, RowDecisions, idle_parts
from flowcache.schedule import ChunkStep, Row, Schedule
from flowcache.trace import Trace, Work


class Session:
    """What the hooks on a transformer and its scheduler share.

    Args:
        method: the caching method.
        able: what the hooks can do for it.

    Attributes:
        quantity: what is forecast; ``guided`` if all guidance branches make it together, so that the scheduler's step,
            which is given what they make, forecasts it. Otherwise each branch of the transformer does.
        trace: of the last video.
        opener: where no pipeline says that a window begins: the steps' times and ``ar_step`` of a video's only one.
        schedule: of all windows so far; None between videos.
        row, decision: of the forwards that run now.
    """

    def __init__(self, method: Method, able: Capabilities) -> None:
        self.method, self.able = replace(method, attention="cached"), able
        self.quantity = able.quantity(method.forecast)
        self.guided = self.quantity in able.guided
        self.trace = Trace()
        self.stepped: list[Any] = []  # the schedulers that step frames of the current window
        self.opener: Callable[[], tuple[Sequence[float], int]] | None = None
        self.begin()

    def begin(self) -> None:
        """The next video."""
        self.windows, self.schedule = Windows(), None
        self.row: Row | None = None
        self.decision: Decision | None = None
        self._rows: list[Row] = []
        self._decisions: RowDecisions | None = None
        self._branches: list[str] = []
        self._work: list[Work] = []
        self._reports: dict[int, list[Tensor]] = {}
        self._source: Any = None
        self.forecast_from = self.corrections = self.compressions = 0

    def open(self, num_frames: int, times: Sequence[float], ar_step: int, given_frames: int, block: int) -> None:
        """A window begins, see ``Windows.open``; with the first one a video."""
        if self.schedule is None:
            self.trace = Trace()
        self._close_row()
        self.schedule = self.windows.open(num_frames, times, ar_step, given_frames, block)
        self._rows = [self.schedule.rows[index] for index in self.schedule.windows[-1].rows]
        self._decisions, self.row = None, None

    def open_alone(self, name: str, num_frames: int, block: int) -> None:
        """Before a forward of a branch: begin a video, where nothing else says that one begins."""
        if self.opener is None:
            return
        if self.schedule is not None and not self._rows and name == self._branches[0]:
            self.end()
        if self.schedule is None:
            times, ar_step = self.opener()
            self.open(num_frames, times, ar_step, 0, block)

    def branch(self, name: str) -> int:
        """A guidance branch's place, by the pipeline's name for it. The first one leads: with it a row begins."""
        if name not in self._branches:
            self._branches.append(name)
        return self._branches.index(name)

    def next_row(self) -> Row:
        """Raises RuntimeError where the window's rows are over."""
        self._close_row()
        if not self._rows:
            raise RuntimeError(
                "the transformer is called once more than its window has rows; remove FlowCache and apply it again "
                "after a run that was broken off outside its pipeline"
            )
        self.row = self._rows.pop(0)
        return self.row

    def decide(self, source: Any) -> Decision:
        """What the policy decides of the current row; ``source`` as ``RowDecisions`` takes it."""
        if self._decisions is None:
            self._decisions = RowDecisions(source, self.trace)
        self._source = source
        self.decision = self._decisions.decide(self.row)
        return self.decision

    def did(self, work: Sequence[Work]) -> None:
        self._work += work

    def showed(self, chunk: int, figures: Tensor) -> None:
        """Float32 [figures] of a part of a chunk that computed; all parts count alike."""
        self._reports.setdefault(chunk, []).append(figures)

    def step_of(self, frame: int) -> tuple[ChunkStep, bool, bool] | None:
        """Of a frame of the window: its chunk's step in the current row, whether that computes, and whether it takes
        its last output once more. None where it takes no step."""
        if self.row is None:
            return None
        chunk = self.schedule.windows[-1].first_chunk + frame // self.windows.frames_a_chunk
        if chunk not in self.row.chunks:
            return None
        return self.row.step_of(chunk), chunk in self.decision.compute, chunk in self.decision.repeat

    def end(self) -> None:
        """The pipeline is done: say what of the method had no effect."""
        if self.schedule is None:
            return
        self._close_row()
        is_whole = not self._rows
        summary = _Summary(self)
        self.begin()
        if is_whole and self.trace.entries:
            self.trace.remarks = idle_parts(summary, self.trace)
            for remark in self.trace.remarks:
                warnings.warn(remark, IdlePart, stacklevel=2)

    def _close_row(self) -> None:
        if self.row is None or self._decisions is None:
            return
        if self._reports:
            numbers = torch.stack([torch.stack(parts).mean(0) for parts in self._reports.values()])
            self._decisions.keep(self.row, (tuple(self._reports), numbers))
            self._reports = {}
        else:
            self._decisions.keep(self.row, self._source.report())
        self._decisions.record(self.row, self.decision, self._work)
        self._work, self.row = [], None


class _Summary:
    """Of a finished video, what ``idle_parts`` asks of a generation."""

    def __init__(self, session: Session) -> None:
        self.method = session.method
        self.forecast_from, self.forecast_corrections = session.forecast_from, session.corrections
        self.kv_compressions = session.compressions


def schedule_of(session: Session) -> Schedule:
    """Of a window that is open. Raises RuntimeError before one is."""
    if session.schedule is None:
        raise RuntimeError(
            "the transformer runs outside a pipeline's call, and nothing says its steps; apply FlowCache with "
            "timesteps=scheduler.timesteps"
        )
    return session.schedule
