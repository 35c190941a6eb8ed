"""Vanilla: every active chunk is computed in every row. MAGI-1's own KV cache of finished chunks stays on."""

from __future__ import annotations

from dataclasses import dataclass

from flowcache.method import MethodConfig
from flowcache.policy import ComputeAll, ReusePolicy


@dataclass(frozen=True, kw_only=True)
class VanillaConfig(MethodConfig):
    """No reuse."""

    def policy(self) -> ReusePolicy:
        return ComputeAll()
