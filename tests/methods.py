"""Methods for tests in one call: a policy's options, those that methods share, and a KV budget with its selector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from baselines.every_k import EveryK
from baselines.scope import Scope
from baselines.uniform import Uniform
from baselines.uniform_calls import UniformCalls
from flowcache.forecast.base import Forecast
from flowcache.forecast.hold import Hold
from flowcache.kv.policy import KvPolicy
from flowcache.kv.select.base import Entries, KeySelector, Selection
from flowcache.kv.select.joint import Joint
from flowcache.method import Method
from flowcache.reuse.base import Decision, ReusePolicy
from flowcache.reuse.chunkwise import Chunkwise
from flowcache.reuse.distance import ChunkDistance, DistanceMeter
from flowcache.reuse.evidence import EvidenceReader
from flowcache.reuse.never import Never
from flowcache.schedule import Row, Schedule


def method(
    reuse: ReusePolicy,
    budget: str | None = None,
    select: KeySelector | None = None,
    forecast: Forecast | None = None,
    **shared: Any,
) -> Method:
    """``select`` is FlowCache's by default."""
    kv = KvPolicy(budget=budget, select=Joint() if select is None else select)
    return Method(reuse=reuse, kv=kv, forecast=Hold() if forecast is None else forecast, **shared)


def changed(method: Method, **options: Any) -> Method:
    """A method with other shared options, another budget or selector."""
    kv = {name: options.pop(name) for name in ("budget", "select") if name in options}
    return replace(method, kv=replace(method.kv, **kv), **options)


def _maker(policy: type[ReusePolicy], **defaults: Any) -> Callable[..., Method]:
    def make(**options: Any) -> Method:
        own = {f.name for f in fields(policy)}
        rest = {name: value for name, value in options.items() if name not in own}
        return method(policy(**{name: options[name] for name in options if name in own}), **defaults | rest)

    return make


vanilla = _maker(Never, attention="native")
chunkwise = _maker(Chunkwise)
every_k = _maker(EveryK)
scope = _maker(Scope)
uniform = _maker(Uniform, attention="native")
uniform_calls = _maker(UniformCalls, attention="native")


@dataclass(kw_only=True)
class ByRow(ReusePolicy):
    """Decides by the row alone."""

    rule: Callable[[Row], Decision]
    decides_on: tuple[str, ...] = ()

    @property
    def uses(self) -> tuple[str, ...]:
        return self.decides_on

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        return self.rule(row)

    def whole_rows(self, schedule: Schedule) -> bool:
        return True


def by_row(rule: Callable[[Row], Decision], uses: tuple[str, ...] = (), **options: Any) -> Method:
    """A method that decides by the row alone."""
    return method(ByRow(rule=rule, decides_on=uses), **options)


def select_keys(
    query: Tensor, key: Tensor, budget: int, select: KeySelector, tokens_per_frame: int, tokens_per_chunk: int
) -> Selection:
    """What a selector keeps of keys [..., G, L, E] that stand from the video's beginning, by queries [..., H, Q, E]."""
    position = torch.arange(key.shape[-2], dtype=torch.int32).expand(key.shape[:-1])
    return select.select(Entries(query, key, key, position, None, 0, tokens_per_frame, tokens_per_chunk), budget)


def distances_of(meter: DistanceMeter, row: Row) -> Mapping[int, ChunkDistance]:
    """As the sampler hands them to a policy."""
    return EvidenceReader(meter).read(row)[0]
