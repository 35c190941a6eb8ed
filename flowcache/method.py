"""A caching method: when chunks compute, what other steps take, what the cache keeps; and what all methods share."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from flowcache.forecast.base import Forecast
from flowcache.forecast.hold import Hold
from flowcache.kv.policy import KvPolicy
from flowcache.options import check_choice, check_switches
from flowcache.part import Part
from flowcache.reuse.base import ReusePolicy
from flowcache.reuse.never import Never


@dataclass(frozen=True, kw_only=True)
class Method:
    """Three parts in any combination; FlowCache is ``Method(reuse=Chunkwise(threshold=0.015, warmup_steps=5))``.

    Attributes:
        reuse: which of a row's chunks compute.
        forecast: what a step takes that does not compute.
        kv: what finished chunks keep in the cache, and how precisely.
        attention: what a chunk attends to. "cached": itself and earlier chunks, through the KV cache. "native": as the
            model was published, which on SkyReels-V2 is every chunk of the window, later ones too, all computed again
            in every row. "causal": itself and earlier chunks, all computed again in every row. On MAGI-1 all three are
            the first, since its finished chunks would only be computed to the same keys again.
        refresh_clean_kv: encode a finished chunk's keys and values once more, clean (default; on MAGI-1 without
            caption, as its vanilla does); False leaves those of its last computed step, as published (fidelity row 7).
        near_clean: run the extra copy of the oldest chunk when it is nearly clean (MAGI-1, guidance 1), whenever that
            chunk is computed; False drops it, as FlowCache's released configuration does (row 19).
        prefix: a window's given chunks are "clean" before its first row, or one row later, as "published" (SkyReels-V2,
            row 8): where chunks see a limited number of clean ones, the first row then sees none.
    """

    reuse: ReusePolicy = field(default_factory=Never)
    forecast: Forecast = field(default_factory=Hold)
    kv: KvPolicy = field(default_factory=KvPolicy)
    attention: Literal["cached", "native", "causal"] = "cached"
    refresh_clean_kv: bool = True
    near_clean: bool = True
    prefix: Literal["clean", "published"] = "clean"

    def __post_init__(self) -> None:
        for name, kind in (("reuse", ReusePolicy), ("forecast", Forecast), ("kv", KvPolicy)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name}={getattr(self, name)!r} must be a {kind.__module__}.{kind.__qualname__}")
        check_choice("attention", self.attention, ("cached", "native", "causal"))
        check_choice("prefix", self.prefix, ("clean", "published"))
        check_switches(refresh_clean_kv=self.refresh_clean_kv, near_clean=self.near_clean)

    def __hash__(self) -> int:
        return hash(repr(self))  # parts have none, for what they remember; it is no option

    def described(self) -> dict[str, Any]:
        """Every part by its class and options, and what methods share: plain values, under the names of the command
        line. Equal for equal methods."""
        kv = _described(self.kv.select) | {"budget": self.kv.budget, "store": _described(self.kv.store)}
        parts = {"reuse": _described(self.reuse), "forecast": _described(self.forecast), "kv": kv}
        return parts | {f.name: getattr(self, f.name) for f in fields(self) if f.name not in parts}


def _described(value: Any) -> Any:
    """Parts within parts, too; data that was read from a file by what tells it from other data."""
    if isinstance(value, Part):
        options = {name: _described(option) for name, option in value.options.items()}
        return {"part": f"{type(value).__module__}.{type(value).__qualname__}", **options}
    if hasattr(value, "described"):
        return value.described()
    return [_described(each) for each in value] if isinstance(value, (list, tuple)) else value


# Every chunk computed in every row, as the models were published.
VANILLA = Method(attention="native")
