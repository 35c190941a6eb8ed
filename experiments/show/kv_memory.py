"""What the memory of a KV cache is for, as tables and messages say it."""

from __future__ import annotations

from collections.abc import Mapping

# By the names of flowcache.kv.store.base.KvUse.
KV_USES = {
    "entries": "full precision",
    "codes": "codes",
    "scales": "scales, centroids",
    "host": "in host memory",
    "read_buffer": "read buffer",
    "selection": "selection",
}


def kv_text(by_use: Mapping[str, int], unit_bytes: int, unit: str = "") -> str:
    """Of bytes by use, in a unit: '2.25 MiB'; where there is more than keys and values as they are, also what for,
    '1.2 MiB (full precision 0.9, codes 0.3)'."""
    whole = f"{sum(by_use.values()) / unit_bytes:.3g} {unit}".rstrip()
    taken = {name: by_use[use] for use, name in KV_USES.items() if by_use.get(use)}
    if taken.keys() <= {KV_USES["entries"]}:
        return whole
    told = ", ".join(f"{name} {size / unit_bytes:.3g}" for name, size in taken.items())
    return f"{whole} ({told})"
