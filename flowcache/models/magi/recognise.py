"""Which MAGI-1 a checkpoint is, from its configuration, or without one from its weights' headers."""

from __future__ import annotations

from pathlib import Path

from flowcache.models.checkpoint import CheckpointError
from flowcache.models.magi.checkpoint import locate
from flowcache.models.magi.config import NETWORKS
from flowcache.models.recognised import Recognised


def recognise(directory: Path) -> Recognised:
    """A checkpoint that ``is_magi``. What is wrong with it is left for loading to say."""
    try:
        dit = locate(directory).config.dit
    except (CheckpointError, OSError, ValueError):
        return Recognised("MAGI-1", "magi", __package__)
    own = (dit.hidden_size, dit.num_layers)
    size = next((name for name, known in NETWORKS.items() if (known.hidden_size, known.num_layers) == own), None)
    return Recognised("MAGI-1", "magi", __package__, size, dit.hidden_size)
