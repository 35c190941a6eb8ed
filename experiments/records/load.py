"""How busy a machine was before videos were timed: a time taken among others' work is not the program's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def is_busy(environment: Mapping[str, Any]) -> bool:
    """Whether, over the minute before, more wanted to run than there are cores; False where that was not recorded."""
    load, cores = environment.get("load_average_1min"), environment.get("cores")
    return load is not None and cores is not None and load > cores


def told_load(environments: Iterable[Mapping[str, Any]]) -> str:
    """Such as "load average 3.1 to 8.2, cores 2", of environments that were recorded with both."""
    environments = list(environments)
    loads = [environment["load_average_1min"] for environment in environments]
    cores = sorted({environment["cores"] for environment in environments})
    ends = dict.fromkeys(f"{load:.1f}" for load in (min(loads), max(loads)))
    return f"load average {' to '.join(ends)}, cores {' or '.join(map(str, cores))}"
