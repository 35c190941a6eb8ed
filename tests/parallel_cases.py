"""Small generations on networks of four key-value heads, to be shared out among processes, by name."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from baselines.magcache import MagCache
from flowcache.forecast.linear import Linear
from flowcache.kv.store.bfloat16 import Bfloat16
from flowcache.kv.store.host import HostMemory
from flowcache.kv.store.integer import Integer
from flowcache.method import Method
from flowcache.models.magi.network import MagiDit
from flowcache.models.skyreels.network import SkyReelsNetwork
from flowcache.models.wan.network import WanNetwork
from flowcache.parallel import ALONE, Parallel
from flowcache.reuse.placed import Placed
from flowcache.sampler import sample
from flowcache.trace import Trace
from tests.methods import changed, chunkwise, every_k, method, vanilla
from tests.models import magi_goldens, skyreels_goldens, wan_goldens
from tests.models.magi_goldens import GUIDANCE_3

Outcome = tuple[Tensor, Trace]

VANILLA = vanilla(attention="cached")
FLOWCACHE = chunkwise(threshold=0.1, warmup_steps=1, budget="4 tokens")
PUBLISHED = changed(FLOWCACHE, select=replace(FLOWCACHE.kv.select, timing="published"))
FLOWCAST = method(Placed(share=0.6), forecast=Linear(damping=0.9, correction=2))
MAGCACHE = method(MagCache(threshold=0.5, most_skips=1, retention=0.2))
INT4 = Integer(bits=4, sink_chunks=0)


def stored(whole: Method, store: Any) -> Method:
    return replace(whole, kv=replace(whole.kv, store=store))


@dataclass(frozen=True)
class Case:
    goldens: Any
    method: Method
    settings: dict[str, Any] = field(default_factory=dict)


MAGI_3, WAN_GUIDED = {"num_chunks": 3, "num_steps": 8, **GUIDANCE_3}, {"solver": "unipc", "guidance_scale": 3.0}
WAN_GUIDED |= {"num_steps": 6, "num_frames": 9}
BRANCHES = {
    "magi": Case(magi_goldens, VANILLA, MAGI_3),
    "magi_flowcache": Case(magi_goldens, FLOWCACHE, MAGI_3),
    "magi_flowcast": Case(magi_goldens, FLOWCAST, MAGI_3),
    "magi_prefix_host": Case(magi_goldens, stored(VANILLA, HostMemory()), MAGI_3 | {"prefix_frames": 9}),
    "magi_bfloat16": Case(magi_goldens, stored(FLOWCACHE, Bfloat16()), MAGI_3),
    "skyreels_native": Case(skyreels_goldens, vanilla()),
    "skyreels_flowcache": Case(skyreels_goldens, FLOWCACHE),
    "skyreels_flowcast": Case(skyreels_goldens, FLOWCAST),
    "skyreels_magcache": Case(skyreels_goldens, MAGCACHE),
    "skyreels_int4": Case(skyreels_goldens, stored(VANILLA, INT4)),
    "wan_flowcache": Case(wan_goldens, FLOWCACHE, WAN_GUIDED),
    "wan_flowcast": Case(wan_goldens, FLOWCAST, WAN_GUIDED),
}
HEADS = {
    "magi_near_clean": Case(magi_goldens, VANILLA, {"near_clean_threshold": 0.3}),
    "magi_flowcache": Case(magi_goldens, FLOWCACHE, MAGI_3),
    "magi_flowcast": Case(magi_goldens, FLOWCAST, {"prefix_frames": 6}),
    "magi_host": Case(magi_goldens, stored(VANILLA, HostMemory())),
    "magi_published": Case(magi_goldens, PUBLISHED, {"num_chunks": 6}),
    "skyreels_native": Case(skyreels_goldens, vanilla()),
    "skyreels_flowcache": Case(skyreels_goldens, FLOWCACHE),
    "skyreels_flowcast": Case(skyreels_goldens, FLOWCAST),
    "wan_flowcache": Case(wan_goldens, FLOWCACHE, WAN_GUIDED),
    "wan_flowcast": Case(wan_goldens, FLOWCAST, WAN_GUIDED),
    "wan_window": Case(
        wan_goldens, every_k(every=2, warmup_steps=1), {"num_frames": 15, "window_frames": 9, "sink_frames": 3}
    ),
}
BY_KIND = {"branches": BRANCHES, "heads": HEADS}


@cache
def network(goldens: Any) -> Any:
    """Of random weights, eight query heads and four key-value heads (MAGI-1), or four heads; no sizes of tokens divide
    evenly among four on Wan."""
    torch.manual_seed(0)
    if goldens is magi_goldens:
        config = magi_goldens.dit_config(hidden_size=128, num_attention_heads=8, num_query_groups=4)
        return MagiDit(config).eval().requires_grad_(False)
    heads = {"num_attention_heads": 4, "attention_head_dim": 12}
    if goldens is skyreels_goldens:
        return SkyReelsNetwork(skyreels_goldens.transformer(**heads))
    return WanNetwork(WanTransformer3DModel(**wan_goldens.config() | heads).eval().requires_grad_(False))


def generation_of(case: Case, parallel: Parallel = ALONE) -> Any:
    made = network(case.goldens)
    made.parallel = parallel
    name = "dit" if case.goldens is magi_goldens else "network"
    try:
        with warnings.catch_warnings(action="ignore"):
            return case.goldens.small_generation(case.method, **case.settings, **{name: made})
    finally:
        made.parallel = ALONE


def outcome(case: Case, parallel: Parallel = ALONE) -> Outcome:
    """The latents [C, f, h, w] and the trace."""
    made, trace = generation_of(case, parallel), Trace()
    network(case.goldens).parallel = parallel
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.cat([latent for _, latent in sample(made, trace)], dim=1), trace
    finally:
        network(case.goldens).parallel = ALONE
