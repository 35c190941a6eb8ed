"""Vanilla: every active chunk is computed in every row.

Its ``attention`` tells three baselines apart (conf/method/vanilla*.yaml): "native" is the model as published (on MAGI-1
with its own KV cache of finished chunks, on SkyReels-V2 bidirectional without one), "causal" the same computed again in
every row but blind to later chunks, and "cached" equal to that with finished chunks cached instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowcache.method import MethodConfig
from flowcache.policy import ComputeAll, ReusePolicy


@dataclass(frozen=True, kw_only=True)
class VanillaConfig(MethodConfig):
    """No reuse."""

    attention: Literal["cached", "native", "causal"] = "native"

    def policy(self) -> ReusePolicy:
        return ComputeAll()
