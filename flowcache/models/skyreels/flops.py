"""What the FlowCache paper charges for a run of SkyReels-V2."""

from __future__ import annotations

from flowcache.models.wan.flops import FlopCounter
from flowcache.schedule import Schedule
from flowcache.trace import Trace


def paper_flops(counter: FlopCounter, trace: Trace, schedule: Schedule) -> int:
    """The run's operations in the paper's accounting: block-causal attention, whatever ran.

    A forward that computes a whole window is charged all of the window's chunks, waiting and finished ones too, each
    attending to itself and those before; a forward through the cache, the chunks it denoises. Encoding given and
    finished chunks, captions and times are not charged.
    """
    total = 0
    for row, work in trace.work:
        if work.kind in ("denoise", "context"):
            position = work.chunk - schedule.windows[schedule.rows[row].window].first_chunk
            total += counter.chunk("denoise", work.chunk, (position + 1) * counter.tokens_per_chunk, work.tokens).flops
    return total
