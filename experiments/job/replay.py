"""The decisions of a recorded run, for following them again: counted on shapes, or in a run of their own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from experiments.job.errors import BadInput
from flowcache.reuse.replay import Replay
from flowcache.trace import Trace, TraceEntry


def read_decisions(path: Path) -> Replay:
    """The policy that follows a recorded run: what it computed in each row, and what it repeated.

    Raises BadInput for a file that is no trace, and for decisions that say more than that (the published forms of
    TeaCache).
    """
    try:
        entries = [TraceEntry(**entry) for entry in pd.read_parquet(path).to_dict("records")]
    except (OSError, ValueError, TypeError, LookupError, NotImplementedError) as error:
        raise BadInput(
            f"replay={path} is not a trace of a run, or is damaged ({error}); give the trace.parquet of a run, in "
            "<output_dir>/runs/<key>"
        ) from error
    if any(entry.action == "held" for entry in entries):
        raise BadInput(f"replay={path} holds chunks back (published TeaCache), which cannot be replayed")
    if any(entry.token_mask for entry in entries):
        raise BadInput(f"replay={path} computes chunks in part (MotionCache), which cannot be replayed")
    if any(entry.action != "compute" and entry.flops for entry in entries):
        raise BadInput(f"replay={path} has guidance branches that decide apart, which cannot be replayed")
    trace = Trace(entries)
    return Replay(computed=trace.computed_rows(), repeated=trace.repeated_rows())
