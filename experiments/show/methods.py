"""Which methods tables, figures and the report show: every one of conf/method that has records; and in which order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from experiments.job.compose import named_method
from experiments.job.groups import config_files
from experiments.job.job import Job
from experiments.records.collect import at_defaults
from experiments.records.settings import value_text


def known_methods() -> list[str]:
    """Of conf/method."""
    return [path.stem for path in config_files("method")]


def family(method: str) -> str:
    """'teacache_slow' -> 'teacache': a method's slow and fast settings are two points of one; 'teacache_slow + linear',
    with another part, is no 'teacache'."""
    return re.sub(r"_(slow|fast)(?=$| \+ )", "", method)


def found_methods(frame: pd.DataFrame, job: Job) -> list[str]:
    """Methods that a frame of ``collect`` has videos of at their default options.

    The job's baseline comes first, then what else computes everything, then the others by name, of one method's
    settings the one that computes most first.
    """
    flops = {name: at_defaults(frame, job, name)["flops"].mean() for name in known_methods()}

    def place(name: str) -> tuple:
        skips = named_method(name, job.model_name, job.setting_name)[0].reuse.skips
        return (name != job.baseline, skips, family(name), -flops[name], name)

    return sorted((name for name in flops if pd.notna(flops[name])), key=place)


def left_out(frame: pd.DataFrame, shown: Iterable[str]) -> list[str]:
    """A note of the methods that have videos in a frame of ``collect``, but none at their default options."""
    others = frame[~frame["method"].isin(list(shown))]
    if others.empty:
        return []
    told = ", ".join(f"{name} ({n})" for name, n in others["method"].value_counts().sort_index().items())
    return [f"Not shown, for no video of theirs is at a method's default options: {told}"]


def quantities(options: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Numbers that say how a method is set, by method and dotted name: those that it alone has, or of which not all
    that have it have as much.

    Args:
        options: by method, by dotted name.
    """
    held: dict[str, set[str]] = {}
    holders: dict[str, int] = {}
    for own in options.values():
        for name, value in own.items():
            if _is_quantity(value):
                held.setdefault(name, set()).add(value_text(value))
                holders[name] = holders.get(name, 0) + 1
    telling = {name for name, values in held.items() if len(values) > 1 or holders[name] == 1}
    return {
        method: {name: value for name, value in own.items() if name in telling and _is_quantity(value)}
        for method, own in options.items()
    }


def _is_quantity(value: Any) -> bool:
    """A number, with its unit or without."""
    if isinstance(value, str):
        return bool(re.match(r"\d", value))
    return isinstance(value, int | float) and not isinstance(value, bool)
