"""Caching on stock pipelines of diffusers, in two lines: ``apply_flowcache(pipe, "flowcast_fast")`` and ``pipe(...)``.

Raises ImportError where diffusers, an optional dependency, is missing or too old.
"""

try:
    from diffusers.hooks import HookRegistry as _needed  # noqa: F401
    from diffusers.hooks.hooks import CacheContext as _needed_too  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"this is for pipelines of diffusers, and this Python has none with its hooks ({error}); install it with "
        "`pip install flowcache[skyreels]`"
    ) from error

from flowcache.integrations.diffusers.apply import FlowCache, apply_flowcache
from flowcache.integrations.diffusers.blocks import register_blocks

__all__ = ["FlowCache", "apply_flowcache", "register_blocks"]
