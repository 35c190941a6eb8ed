"""Where what can be fetched or computed again is kept."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$FLOWCACHE_CACHE, by default ~/.cache/flowcache."""
    return Path(os.environ.get("FLOWCACHE_CACHE") or "~/.cache/flowcache").expanduser()
