"""Caching for autoregressive video diffusion: when a chunk computes, what it takes otherwise, what the cache keeps."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for those who read the source and do not run it: editors, type checkers, the records' code hash
    from flowcache.forecast.hold import Hold as Hold
    from flowcache.forecast.linear import Linear as Linear
    from flowcache.kv.policy import KvPolicy as KvPolicy
    from flowcache.kv.select.joint import Joint as Joint
    from flowcache.method import Method as Method
    from flowcache.methods import named as named
    from flowcache.progress import progress_bar as progress_bar
    from flowcache.reuse.chunkwise import Chunkwise as Chunkwise
    from flowcache.reuse.never import Never as Never
    from flowcache.reuse.placed import Placed as Placed
    from flowcache.sampler import generate as generate
    from flowcache.sampler import sample as sample
    from flowcache.trace import Trace as Trace
    from flowcache.video import export_to_video as export_to_video
    from flowcache.video import to_pil as to_pil

__version__ = "0.1.0"

# Loaded when asked for, so that a part does not bring all others along.
_HOMES = {
    "Method": "flowcache.method",
    "Never": "flowcache.reuse.never",
    "Chunkwise": "flowcache.reuse.chunkwise",
    "Placed": "flowcache.reuse.placed",
    "Hold": "flowcache.forecast.hold",
    "Linear": "flowcache.forecast.linear",
    "KvPolicy": "flowcache.kv.policy",
    "Joint": "flowcache.kv.select.joint",
    "Trace": "flowcache.trace",
    "generate": "flowcache.sampler",
    "sample": "flowcache.sampler",
    "named": "flowcache.methods",
    "progress_bar": "flowcache.progress",
    "export_to_video": "flowcache.video",
    "to_pil": "flowcache.video",
}
_MOVED = {
    "FlowCacheConfig": "Method(reuse=Chunkwise(threshold=..., warmup_steps=...))",
    "MethodConfig": "Method",
    "CompressionConfig": "KvPolicy(select=Joint(...), budget=...)",
}

__all__ = sorted(_HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MOVED:
        raise ImportError(f"flowcache.{name} is now {_MOVED[name]}, of the same package")
    raise AttributeError(f"module 'flowcache' has no attribute {name!r}")
