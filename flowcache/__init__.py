"""Caching for autoregressive video diffusion: chunkwise reuse and KV caching on MAGI-1 and SkyReels-V2."""

from flowcache.kv_score import CompressionConfig
from flowcache.method import FlowCacheConfig, MethodConfig
from flowcache.sampler import generate, sample
from flowcache.trace import Trace

__all__ = ["CompressionConfig", "FlowCacheConfig", "MethodConfig", "Trace", "generate", "sample"]
