"""Everything is kept: no budget, no selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from flowcache.kv.select.base import Entries, KeySelector, Selection


@dataclass(kw_only=True)
class Everything(KeySelector):
    selects: ClassVar[bool] = False

    def select(self, entries: Entries, budget: int) -> Selection:
        raise NotImplementedError("a cache that keeps everything is never over its budget")
