"""What SkyReels-V2's settings and a method refuse of each other, before any work."""

from __future__ import annotations

from flowcache.method import Method
from flowcache.models.skyreels.config import Sampling


def check_settings(sampling: Sampling, method: Method) -> None:
    """Refuse settings that the method's attention has no use for. Raises ValueError with the reason."""
    if sampling.clean_blocks_seen is not None and method.attention != "cached":
        raise ValueError(
            f"clean_blocks_seen={sampling.clean_blocks_seen} limits what is read from the cache, and "
            f"attention={method.attention!r} has none; choose attention='cached'"
        )
