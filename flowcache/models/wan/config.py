"""Causal Wan's sampling settings."""

from __future__ import annotations

TEMPORAL_FACTOR = 4  # pixel frames a latent frame, but for a video's first, which is one
