"""Keys of a small norm (arXiv 2406.11430; NVIDIA/kvpress: KnormPress), which language models attend to most.

It looks at no query. Where a model normalises its keys, as all of ours do, norms say little: a cheap control.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowcache.kv.select.base import Entries
from flowcache.kv.select.by_score import ByScore, key_mask


@dataclass(kw_only=True)
class KeyNorm(ByScore):
    """Attributes: see ByScore."""

    def scores(self, entries: Entries) -> Tensor:
        return key_mask(entries.key) - torch.linalg.vector_norm(entries.key, dim=-1, dtype=torch.float32)
