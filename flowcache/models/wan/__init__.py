"""Causal Wan: Self-Forcing (arXiv 2506.08009), Causal-Forcing, LongLive (2509.22622), Rolling Forcing (2509.25161).

Chunks of a few latent frames, in few steps, one after another; and what SkyReels-V2 shares with them. Raises
ImportError where diffusers, an optional dependency, is missing or too old.
"""

try:
    from diffusers import WanTransformer3DModel as _needed  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"causal Wan runs over diffusers, and this Python has none with its modules ({error}); install it with "
        "`pip install flowcache[skyreels]`"
    ) from error

from flowcache.models.wan.config import Sampling
from flowcache.models.wan.model import Wan

__all__ = ["Sampling", "Wan"]
