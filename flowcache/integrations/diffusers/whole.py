"""A transformer whose frames all attend to each other and are at one step: the whole window computes, or none of it.

The forward stays diffusers' own, bit for bit where it computes; in a step that skips, its blocks pass their input on.

Shape letters: B videos, S tokens of the window, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.hooks.hooks import BaseState, CacheContext, ModelHook, StateManager
from torch import Tensor

from flowcache.forecast.history import OutputHistory
from flowcache.integrations.diffusers.session import Session, schedule_of
from flowcache.kv.policy import KvPolicy
from flowcache.models.capabilities import Capabilities, check_method
from flowcache.models.wan.flops import FlopCounter
from flowcache.parallel import ALONE
from flowcache.schedule import Row, Schedule
from flowcache.trace import Work

ABLE = Capabilities(
    model="a pipeline whose frames all attend to each other",
    distances=("embedded_latent", "rescaled_modulation"),
    quantities=("residual", "clean", "velocity"),
    correctable=("clean",),
    guided=("clean", "velocity"),
    decisions=("repeat",),
)


class WholeState(BaseState):
    """Of a guidance branch, by diffusers' cache context."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.schedule: Schedule | None = None
        self.history: OutputHistory | None = None
        self.entered: Tensor | None = None  # what the first block was given, [B, S, D]
        self.modulation: Tensor | None = None
        self.computes = True


class Whole:
    """What a session's policy sees of a window (flowcache.models.base.Generation, as far as decisions ask)."""

    kv_tokens = kv_bytes_used = 0
    parallel = ALONE

    def __init__(self, session: Session, config: Any) -> None:
        self.session, self.config = session, config
        self.method = session.method
        self.state: WholeState | None = None  # of the leading branch

    @property
    def schedule(self) -> Schedule:
        return schedule_of(self.session)

    def measured_chunks(self, row: Row) -> tuple[int, ...]:
        return row.chunks

    def follows(self, chunk: int) -> bool:
        return False

    def features(self, kind: str, chunks: tuple[int, ...]) -> Tensor:
        """[1, ...]; modulations of frames at one time are alike, and the last token's is as good as any."""
        if kind == "embedded_latent":
            return self.state.entered[None]
        modulation = self.state.modulation
        return (modulation if modulation.ndim == 3 else modulation[:, :, -1])[None]

    def report(self) -> tuple[tuple[int, ...], Tensor] | None:
        return None if self.state is None or self.state.history is None else self.state.history.take_report()

    def work(self, row: Row, computes: bool, text: Tensor) -> Sequence[Work]:
        """Of one branch and video."""
        tokens = self.state.entered.shape[1]
        flops = FlopCounter(self.config, tokens, text.shape[1])
        (chunk,) = row.chunks
        return [flops.chunk("denoise", chunk, tokens) if computes else flops.reuse(chunk)]


class WholeHook(ModelHook):
    """On one of the transformer's blocks.

    Args:
        whole, states: shared by all blocks.
        is_first, is_last: of the blocks.
    """

    _is_stateful = True

    def __init__(self, whole: Whole, states: StateManager, is_first: bool, is_last: bool) -> None:
        super().__init__()
        self.whole, self.session, self.states = whole, whole.session, states
        self.is_first, self.is_last = is_first, is_last

    def new_forward(self, module: torch.nn.Module, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        if self.states._context is None:
            self.states.set_context(CacheContext("inference"))
        state = self.states.get_state()
        if self.is_first:
            self._enter(state, hidden_states, *args)
        hidden = self.fn_ref.original_forward(hidden_states, *args, **options) if state.computes else hidden_states
        if self.is_last and not self.session.guided:
            hidden = self._leave(state, hidden)
        return hidden

    def reset_state(self, module: torch.nn.Module) -> torch.nn.Module:
        """The pipeline is done, and calls this."""
        self.session.end()
        self.states.reset()
        return module

    def _enter(self, state: WholeState, hidden: Tensor, text: Tensor, modulation: Tensor, *_: Any) -> None:
        session = self.session
        session.open_alone(self.states.context.name, 1, 1)
        schedule = schedule_of(session)
        if state.schedule is not schedule:
            state.schedule = schedule
            figures = session.method.reuse.report if session.branch(self.states.context.name) == 0 else ()
            state.history = OutputHistory(session.method.forecast.fresh(), figures, schedule.jumps)
        state.entered, state.modulation = hidden, modulation
        if session.branch(self.states.context.name) == 0:
            row = session.next_row()
            if row.index == 0:
                _check(session, schedule)
            self.whole.state = state
            session.decide(self.whole)
        state.computes = session.row.chunks == session.decision.compute
        session.did(self.whole.work(session.row, state.computes, text))

    def _leave(self, state: WholeState, hidden: Tensor) -> Tensor:
        """The blocks' output [B, S, D]: as computed, or with what is forecast of what they add."""
        (step,) = self.session.row.steps
        if state.computes:
            state.history.update(step, hidden - state.entered, state.entered)
            return hidden
        repeats = step.chunk in self.session.decision.repeat
        forecast = state.history.predict(step, repeat=repeats)
        self.session.forecast_from = max(self.session.forecast_from, state.history.forecast_from)
        return hidden + forecast


def _check(session: Session, schedule: Schedule) -> None:
    """Refuse what asks for chunks. Raises ValueError."""
    check_method(session.method, schedule, ABLE)
    if session.method.kv != KvPolicy():
        raise ValueError(
            "kv is what finished chunks keep in a cache, and frames that all attend to each other have none; leave it "
            "out, or call a diffusion-forcing pipeline with causal_block_size"
        )
