"""A KV policy: how much finished chunks may keep, which of their keys, and how precisely."""

from __future__ import annotations

from dataclasses import dataclass, field

from flowcache.kv.budget import EXAMPLES, parse_budget
from flowcache.kv.select.base import KeySelector
from flowcache.kv.select.full import Everything
from flowcache.kv.store.base import KvStore
from flowcache.kv.store.full_precision import FullPrecision
from flowcache.part import Part


@dataclass(kw_only=True)
class KvPolicy(Part):
    """Attributes.

    select: chooses what a cache over its budget keeps.
    store: holds it.
    budget: what finished chunks' keys and values may take in every layer, head and guidance branch, such as "2 chunks"
        or "4096 tokens"; or, as "64 MiB", what all caches may take together with the chunks being denoised. The cache
        is compressed to it, and allocated for it. None keeps everything.
    """

    select: KeySelector = field(default_factory=Everything)
    store: KvStore = field(default_factory=FullPrecision)
    budget: str | None = None

    def __post_init__(self) -> None:
        for name, part, kind in (("select", self.select, KeySelector), ("store", self.store, KvStore)):
            if not isinstance(part, kind):
                raise TypeError(f"{name}={part!r} must be a {kind.__module__}.{kind.__qualname__}")
        if self.budget is None:
            return
        parse_budget(self.budget)
        if not self.select.selects:
            raise ValueError(
                f"budget={self.budget!r} asks to keep less than everything, and nothing here says what: choose a "
                f"selector, such as kv=joint kv.budget={self.budget!r}, or budget null (a budget is {EXAMPLES})"
            )
        if self.select.by_head:
            raise ValueError(
                f"budget={self.budget!r} bounds what every head keeps, and {type(self.select).__name__} keeps frames "
                "by head; choose budget null and its own numbers of frames, or another selector"
            )
