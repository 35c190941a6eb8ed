"""What tells settings of one method apart, and how a setting is called where it stands beside others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from experiments.job.job import Job
from experiments.records.collect import described

Options = Mapping[str, Any]  # by dotted name, as of ``described``


def told_apart(settings: Sequence[Options]) -> tuple[str, ...]:
    """Names of the options in which settings of one method differ that have them, in the order in which they come.

    Which parts a setting has its method's name says, and the options that come with them. An option of another, as of a
    plan, is none where that is none.
    """
    values: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    names = dict.fromkeys(name for setting in settings for name in setting)
    for setting in settings:
        for name in names:
            if name.endswith((".part", ".sha256")):
                continue
            if name in setting or _is_without(setting, name):
                values[name][setting["method"]].add(value_text(setting.get(name)))
    return tuple(name for name in names if any(len(seen) > 1 for seen in values[name].values()))


def _is_without(setting: Options, name: str) -> bool:
    """Whether a setting has none of what an option belongs to."""
    return any(setting.get(name[:end], "") is None for end, mark in enumerate(name) if mark == ".")


def label(setting: Options, names: Sequence[str]) -> str:
    """'flowcache_fast, reuse.threshold 0.02': the method, and what it has for these options, without those of none."""
    told = (f"{name} {value_text(setting[name])}" for name in names if setting.get(name) is not None)
    return ", ".join((setting["method"], *told))


def labels(jobs: Sequence[Job]) -> list[str]:
    """How each of some jobs is called among the others: by its method, and the options that it does not share with
    other jobs of that method."""
    settings = [described(job) for job in jobs]
    by_method: dict[str, list[Options]] = defaultdict(list)
    for setting in settings:
        by_method[setting["method"]].append(setting)
    names = {method: told_apart(own) for method, own in by_method.items()}
    return [label(setting, names[setting["method"]]) for setting in settings]


def labelled(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, each with its label among the others."""
    return [replace(job, label=told) for job, told in zip(jobs, labels(jobs), strict=True)]


def value_text(value: Any) -> str:
    """An option's value as it is read: 'none', 'true', '0.02', '2 chunks'."""
    if value is None or value != value:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
