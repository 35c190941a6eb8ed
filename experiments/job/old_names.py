"""Options under the names that they had before a method was three parts: they go on under today's, and it is said."""

from __future__ import annotations

import sys

_RENAMED = {
    **{f"method.{name}": f"reuse.{name}" for name in ("threshold", "warmup_steps", "last_step", "distance")},
    **{f"method.{name}": f"reuse.{name}" for name in ("polynomial", "every", "published")},
    "method.reuse": "forecast.quantity",
    "method.kv_budget": "kv.budget",
}
_COMPRESSION = "method.compression."  # of a KV selector, now below kv


def todays(arguments: list[str]) -> list[str]:
    """Arguments ``key=value`` under today's names; each that has changed is told on stderr."""
    renamed = []
    for argument in arguments:
        key, separator, value = argument.partition("=")
        name = _RENAMED.get(key, f"kv.{key.removeprefix(_COMPRESSION)}" if key.startswith(_COMPRESSION) else key)
        if name != key:
            print(f"{key} is now called {name}", file=sys.stderr)
        renamed.append(f"{name}{separator}{value}")
    return renamed
