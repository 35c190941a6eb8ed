"""Caching for autoregressive video diffusion: when a chunk computes, what it takes otherwise, what the cache keeps."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Loaded when asked for, so that a part does not bring all others along.
_HOMES = {
    "Method": "flowcache.method",
    "Never": "flowcache.reuse.never",
    "Chunkwise": "flowcache.reuse.chunkwise",
    "Hold": "flowcache.forecast.hold",
    "Linear": "flowcache.forecast.linear",
    "KvPolicy": "flowcache.kv.policy",
    "Joint": "flowcache.kv.select.joint",
    "Trace": "flowcache.trace",
    "generate": "flowcache.sampler",
    "sample": "flowcache.sampler",
}
_MOVED = {
    "FlowCacheConfig": "Method(reuse=Chunkwise(threshold=..., warmup_steps=...))",
    "MethodConfig": "Method",
    "CompressionConfig": "KvPolicy(select=Joint(...), budget=...)",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MOVED:
        raise ImportError(f"flowcache.{name} is now {_MOVED[name]}, of the same package")
    raise AttributeError(f"module 'flowcache' has no attribute {name!r}")
