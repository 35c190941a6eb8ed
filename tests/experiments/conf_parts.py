"""The parts that conf/ has files of, each at its own options, so that a new one is tested by being there."""

from __future__ import annotations

from functools import cache

from hydra.utils import get_object

from experiments.job.compose import composed
from experiments.job.groups import CONF
from experiments.job.method import make_method
from flowcache.method import Method


def takes_no_budget(kv: str) -> bool:
    """One that keeps everything, or frames by head."""
    select = get_object(composed([f"kv={kv}"]).kv["_target_"])
    return select.by_head or not select.selects


GROUPS = ("reuse", "forecast", "kv", "kv/store")
CHOICES = {group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in GROUPS}
UNBOUNDED = {name for name in CHOICES["kv"] if takes_no_budget(name)}
# What a short video's few steps and chunks need of the options that parts have.
SHORT = {"reuse.warmup_steps": 1, "reuse.threshold": 0.3, "kv.budget": "1 chunk"}


@cache
def part(group: str, name: str) -> Method:
    """A method with one part of a file, at its own options but for those of ``SHORT`` that it has."""
    config = composed([f"{group}={name}"])
    chosen = group.partition("/")[0]
    for key, value in SHORT.items():
        node, _, option = key.partition(".")
        if node == chosen and option in config[node] and not (group == "kv" and name in UNBOUNDED):
            config[node][option] = value
    if group == "kv/store":
        config.kv.budget = None
    return make_method(config)
