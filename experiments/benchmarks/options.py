"""Values of the benchmarks' own options, which come as text."""

from __future__ import annotations

from experiments.job.errors import BadInput


def whole_number(name: str, text: str) -> int:
    """At least 1. Raises BadInput."""
    if not text.isdecimal() or int(text) < 1:
        raise BadInput(f"{name}={text} must be a whole number of at least 1")
    return int(text)
