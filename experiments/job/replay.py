"""The decisions of a recorded run, for following them again: counted on shapes, or in a run of their own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from experiments.job.errors import BadInput
from flowcache.trace import Trace, TraceEntry


def read_decisions(path: Path) -> list[list[int]]:
    """The chunks that a recorded run computed in each row.

    Raises BadInput for a file that is no trace, and for decisions that say more than what to compute (the published
    forms of TeaCache).
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
    if any(entry.action == "reuse" and entry.flops for entry in entries):
        raise BadInput(f"replay={path} has guidance branches that decide apart, which cannot be replayed")
    return Trace(entries).computed_rows()
