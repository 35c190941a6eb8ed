"""How much a KV cache may hold, and the buffer that takes: worked out from the schedule, before any work.

A budget is what *finished* chunks may keep (the paper's B_budget); the chunks being denoised (B_active) come on top.
Given in bytes it is the limit of all that the caches allocate, and what finished chunks may keep follows from it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from flowcache.kv.select.base import KeySelector
from flowcache.schedule import Schedule

BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
EXAMPLES = "'2 chunks', '4096 tokens' or '64 MiB'"
_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(chunks?|tokens?|B|KiB|MiB|GiB)\s*")


@dataclass(frozen=True)
class Budget:
    """What bounds a cache, in tokens of every layer and head.

    Attributes:
        kept: of finished chunks, at most, once they have been compressed.
        capacity: in all; the length of the buffers.
        tokens_per_frame: what "frame" means to who chooses.
        query_heads: query heads whose queries are remembered from forward to forward; 0 remembers none.
    """

    kept: int
    capacity: int
    tokens_per_frame: int
    query_heads: int = 0


def parse_budget(text: str) -> tuple[float, str]:
    """ "2 chunks" -> (2.0, "chunks"); units are chunks, tokens (of a layer and head), B, KiB, MiB and GiB."""
    match = _FORM.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"budget={text!r} is not understood; write {EXAMPLES}, or null for no budget")
    amount, unit = float(match[1]), match[2]
    if unit not in BYTES:
        unit = unit.rstrip("s") + "s"
    return amount, unit


def plan_budget(
    text: str | None,
    select: KeySelector,
    schedule: Schedule,
    tokens_per_frame: int,
    tokens_per_chunk: int,
    refreshes: bool,
    bytes_of: Callable[[Budget | None], int],
    device: torch.device | str,
    query_heads: int = 0,
    devices: int = 1,
) -> Budget | None:
    """The budget of a generation's caches, or None where nothing is ever dropped.

    Args:
        text: see ``parse_budget``; None is no budget.
        select: chooses what to keep.
        refreshes: finished chunks' keys and values are encoded once more, so that they are final a row later.
        bytes_of: what all caches of the generation take together, with a budget or without.
        query_heads: see Budget.
        devices: of equal memory, that share the caches out.

    Raises ValueError for a budget that is too small, not whole units of what is kept together, or beyond the device's
    memory; the message names one that would do.
    """
    if text is None:
        return None
    amount, unit = parse_budget(text)
    select.num_queries(tokens_per_frame, tokens_per_chunk)
    whole = select.unit_tokens(tokens_per_frame, tokens_per_chunk)
    least = select.least_tokens(tokens_per_frame, tokens_per_chunk)
    longest = max(window.num_chunks for window in schedule.windows) * tokens_per_chunk

    def budget_of(kept: int) -> Budget:
        capacity = longest_held(schedule, kept, tokens_per_chunk, refreshes)
        return Budget(kept, capacity, tokens_per_frame, query_heads)

    if unit in BYTES:
        limit = _whole_number(amount * BYTES[unit])
        _check_memory(text, limit // devices, device)
        if limit >= bytes_of(None):
            return None
        if limit < bytes_of(budget_of(least)):
            raise ValueError(
                f"budget={text!r} is too small for the chunks being denoised and {least} tokens of finished ones; "
                f"the smallest that would do is {_readable(bytes_of(budget_of(least)))!r}"
            )
        fits, beyond = least // whole, longest // whole + 1  # in wholes
        while beyond - fits > 1:
            middle = (fits + beyond) // 2
            fits, beyond = (middle, beyond) if bytes_of(budget_of(middle * whole)) <= limit else (fits, middle)
        return budget_of(fits * whole)

    kept = _whole_number(amount * (tokens_per_chunk if unit == "chunks" else 1))
    if kept < least or (kept % whole and kept < longest):
        nearest = max(least, round(kept / whole) * whole)
        wanted = f"a whole number of units of {whole} tokens, " if whole > 1 else ""
        raise ValueError(
            f"budget={text!r} is {kept} tokens per head, and {type(select).__name__} keeps {wanted}at least {least}; "
            f"the smallest that would do is '{least} tokens', and the nearest '{nearest} tokens'"
        )
    budget = None if kept >= longest else budget_of(kept)
    _check_memory(text, bytes_of(budget) // devices, device)
    return budget


def longest_held(schedule: Schedule, kept: int, tokens_per_chunk: int, refreshes: bool) -> int:
    """Most tokens that a cache holds at once if finished chunks are compressed to ``kept`` tokens: its buffer's length.

    Whatever the reuse policy: a row in which a chunk starts always computes, and only such a row is counted on to
    encode given and finished chunks, or to compress what was final before it. Keys are written after compressing.
    """
    most = 0
    for window in schedule.windows:
        held, first_whole = 0, window.first_chunk  # tokens kept of the chunks before the first that stands whole
        final, finished = window.first_chunk, window.generated[0]  # chunks before these are so
        for row in (schedule.rows[index] for index in window.rows):
            if any(step.step == 0 for step in row.steps):
                if held + (final - first_whole) * tokens_per_chunk > kept:
                    held, first_whole = kept, final
                final = finished
            most = max(most, held + (row.chunks[-1] + 1 - first_whole) * tokens_per_chunk)
            if row.finished:
                finished = row.finished[-1] + 1
                final = final if refreshes else finished
    return most


def _whole_number(amount: float) -> int:
    """Rounded down, but for what decimals lose."""
    return math.floor(amount + 1e-6)


def _check_memory(text: str, needed: int, device: torch.device | str) -> None:
    there = _memory(torch.device(device))
    if there is not None and needed > there:
        raise ValueError(f"budget={text!r} takes {_readable(needed)}, and {device} has {_readable(there)}; lower it")


def _memory(device: torch.device) -> int | None:
    """Bytes of a device, None where there is no limit or none is known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _readable(num_bytes: int) -> str:
    """As a budget that is not below it."""
    unit = "MiB" if num_bytes >= BYTES["MiB"] else "KiB"
    return f"{math.ceil(100 * num_bytes / BYTES[unit]) / 100:.2f} {unit}"
