"""(e) Choosing what a full KV cache keeps, against the whole-matrix form (see experiments.benchmarks.kv)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

from experiments.benchmarks.gpu.subject import RUNS
from experiments.benchmarks.kv import Sizes, compare
from flowcache.kv.select.base import Unit


def compression(device: str, lengths: Sequence[int], runs: int = RUNS) -> dict[str, Any]:
    """One layer of MAGI-1 4.5B, by keys and by what queries count."""
    cases = [
        {"keys": length, "queries": unit, **asdict(compare(Sizes(length), unit, runs, device))}
        for length in lengths
        for unit in get_args(Unit)
    ]
    return {"cases": cases, "runs": runs}
