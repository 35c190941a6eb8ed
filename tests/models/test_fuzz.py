"""Random settings of both embedded models with random parts: a video of the asked length, or one clear refusal."""

from __future__ import annotations

import random
import warnings
from functools import cache
from typing import Any

import pytest
import torch

from baselines.every_k import EveryK
from baselines.sink_recent import SinkRecent
from baselines.uniform import Uniform
from baselines.uniform_calls import UniformCalls
from flowcache import Trace, generate
from flowcache.forecast.hold import Hold
from flowcache.forecast.linear import Linear
from flowcache.kv.policy import KvPolicy
from flowcache.kv.select.full import Everything
from flowcache.kv.select.joint import Joint
from flowcache.kv.store.bfloat16 import Bfloat16
from flowcache.kv.store.full_precision import FullPrecision
from flowcache.method import Method
from flowcache.models.magi import Magi
from flowcache.models.skyreels import SkyReels
from flowcache.reuse.chunkwise import Chunkwise
from flowcache.reuse.never import Never

NUM_SETTINGS = 40  # of each model
PROMPT = "a red circle moving right on a dark background"


@cache
def model(name: str) -> Any:
    loader = {"magi": Magi, "skyreels": SkyReels}[name]
    return loader.from_pretrained(f"experiments/embedded/{name}")


def drawn_method(name: str, draw: random.Random) -> Method:
    pick = draw.choice
    rescaled = ["rescaled_modulation", "rescaled_time_embedding"] if name == "skyreels" else []
    distance = pick(["embedded_latent", "latent", *rescaled])
    options = {"threshold": pick([0.0, 0.01, 0.1, 1e9]), "warmup_steps": pick([0, 1, 2]), "distance": distance}
    options["polynomial"] = "skyreels_v2_1.3b" if distance in rescaled else None
    reuse = pick(
        [
            lambda: Never(),
            lambda: Chunkwise(**options, last_step=pick(["own", "global"])),
            lambda: Uniform(**options, published=pick([True, False])),
            lambda: UniformCalls(**options),
            lambda: EveryK(every=pick([1, 2, 3, 100]), warmup_steps=pick([0, 1, 2])),
        ]
    )()
    quantity = pick([None, None, "velocity", "displacement", "residual"])
    forecast = pick([Hold(quantity=quantity), Linear(quantity=quantity, damping=pick([0.0, 0.5, 1.0]))])
    joint = Joint(
        mix_lambda=pick([0, 0.07, 0.5, 1]),
        pool_kernel=pick([1, 3, 7, 15]),
        selection=pick(["token", "frame", "chunk"]),
        query_granularity=pick(["token", "frame", "chunk", 1, 16]),
        weighting=pick(["no_weight", "hard_code", "exponential", "polynomial", "gaussian"]),
        kept_order=pick(["position", "score"]),
        timing=pick(["sound", "published"]),
    )
    budget = pick([None, None, "1 chunk", "2 chunks", "0.5 chunks", "64 tokens", "1 tokens", "200 KiB", "8 MiB"])
    select = pick([joint, SinkRecent(sink_frames=pick([0, 1, 2]))]) if budget else Everything()
    return Method(
        reuse=reuse,
        forecast=forecast,
        kv=KvPolicy(select=select, store=pick([FullPrecision(), FullPrecision(), Bfloat16()]), budget=budget),
        attention=pick(["cached", "cached", "cached", "native", "causal"]),
        refresh_clean_kv=pick([True, False]),
        near_clean=pick([True, False]),
        prefix=pick(["clean", "published"]),
    )


def drawn_video(name: str, draw: random.Random) -> tuple[int, dict[str, Any]]:
    """Frames to ask for, and the model's options."""
    pick = draw.choice
    height, width = pick([(32, 48), (16, 16)])
    options: dict[str, Any] = {"height": height, "width": width}
    pixels = torch.Generator().manual_seed(draw.randrange(2**31))
    frames = lambda *shape: torch.randint(0, 256, shape, generator=pixels, dtype=torch.uint8)  # noqa: E731
    given = pick(["", "", "", "image", "prefix"])
    if name == "magi":
        options |= {"num_steps": pick([4, 8]), "cfg_number": pick([1, 1, 3])}
        options |= {"noise2clean_kvrange": pick([None, [], [5, 4, 3, 2], [1], [2, 1]])}
        options |= {"clean_chunk_kvrange": pick([None, -1, 1, 2])}
        num_frames = pick([24, 48, 96])
        if given == "prefix":
            length = pick([4, 8, 24, 48])
            options["prefix_video"] = frames(length, height, width, 3)
            num_frames -= length % 24
    else:
        block = pick([1, 2, 5])
        base, overlap = (4 * (pick(counts) * block - 1) + 1 for counts in ([2, 3, 4, 5], [1, 2]))
        options |= {"num_steps": pick([1, 2, 4]), "causal_block_size": block, "ar_step": pick([0, 1, 2, 5, 50])}
        options |= {"base_num_frames": base, "overlap_history": overlap, "guidance_scale": pick([1, 6.0])}
        options |= {"clean_blocks_seen": pick([None, None, 0, 1]), "addnoise_condition": pick([0, 20, 999])}
        options |= {"corrector": pick(["sound", "published"])}
        num_frames = 4 * (pick([1, 2, 3, 6]) * block - 1) + 1
        if given == "prefix":
            options["prefix_video"] = frames(max(overlap, 17), height, width, 3)
            num_frames = 4 * block * pick([1, 2])
    if given == "image":
        options["image"] = frames(height, width, 3)
    return num_frames, options


@pytest.mark.parametrize("name", ["magi", "skyreels"])
def test_random_settings_make_the_asked_video_or_are_refused(name):
    made = late = 0
    for seed in range(NUM_SETTINGS):
        draw = random.Random(f"{name} {seed}")
        method, (num_frames, options) = drawn_method(name, draw), drawn_video(name, draw)
        trace = Trace()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pieces = list(generate(model(name), PROMPT, num_frames, method, 1, trace, **options))
        except ValueError:
            late += bool(trace.entries)
            continue
        assert sum(map(len, pieces)) == num_frames, f"seed {seed}: {method} {options}"
        assert trace.kv_bytes_used_peak <= trace.kv_bytes_allocated, f"seed {seed}"
        made += 1
    assert late == 0  # a refusal comes before any work
    assert made >= NUM_SETTINGS // 5  # most draws hold something that does not go together
