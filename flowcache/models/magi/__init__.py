"""MAGI-1 (arXiv 2505.13211): chunks of 24 frames, four of them denoised at once."""

from flowcache.models.magi.model import Magi

__all__ = ["Magi"]
