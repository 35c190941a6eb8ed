"""SkyReels-V2 (arXiv 2504.13074), diffusion forcing: chunks of latent frames, each starting rows after the last.

Raises ImportError where diffusers, an optional dependency, is missing or too old.
"""

try:
    from diffusers import SkyReelsV2Transformer3DModel as _needed  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"SkyReels-V2 runs over diffusers, and this Python has none with its modules ({error}); install it with "
        "`pip install flowcache[skyreels]`"
    ) from error

from flowcache.models.skyreels.config import Sampling
from flowcache.models.skyreels.model import SkyReels

__all__ = ["Sampling", "SkyReels"]
