"""SkyReels-V2 (arXiv 2504.13074), diffusion forcing: chunks of latent frames, each starting rows after the last."""

from flowcache.models.skyreels.config import Sampling
from flowcache.models.skyreels.model import SkyReels

__all__ = ["Sampling", "SkyReels"]
