"""Causal Wan's network against the official numbers: whole sequences, block by block, and with an adapter."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from flowcache.kv.window import WindowCache
from flowcache.models.wan.attention import Member, Pack, rotate
from flowcache.models.wan.network import WanNetwork
from flowcache.models.wan.rotary import Rotary
from tests.models.wan_goldens import COLUMNS, ROWS, TOKENS, golden_network, latents, manifest, tensors

FORWARD = tensors("forward")
TOLERANCE = 2e-5
SIZES = {"block1": [1] * 9, "block3": [3] * 3, "first1_block3": [1, 3, 3, 3]}


def new_cache(window: int = 10, sink: int = 0) -> WindowCache:
    config = golden_network().config
    return WindowCache(
        config.num_layers, config.num_attention_heads, config.attention_head_dim, TOKENS, window, sink_frames=sink
    )


def run(
    network: WanNetwork,
    latent: Tensor,
    times: Tensor,
    blocks: Sequence[tuple[int, int]],
    cache: WindowCache | None,
    window: int = 10,
    sink: int = 0,
) -> Tensor:
    """Neighbouring blocks (first frame, frames) in one forward -> [1, F, C, h, w].

    ``latent`` and ``times`` are theirs; without a cache all see all.
    """
    rope = Rotary(network.config.attention_head_dim, 600, ROWS // 2, COLUMNS // 2, "cpu")
    table = network.time_table(times.flatten())
    first, last = blocks[0][0], sum(blocks[-1]) - 1
    members = tuple(
        Member(start, size * TOKENS, max(0, start + size - (window - sink)), start + size - 1, sink="own")
        for start, size in blocks
    )
    if cache is None:
        members = (Member(0, (last + 1) * TOKENS, 0, 0),)
    x = network.embed(latents(latent))
    pack = Pack(members, rope.frames(first, last), cache)
    x = network.blocks(x, table.modulation, network.caption(FORWARD["in.context"]), pack)
    return latents(network.head(x, table.embedding, ROWS, COLUMNS))


def spans(sizes: Sequence[int], first: int = 0) -> list[tuple[int, int]]:
    """First frames and sizes of blocks."""
    return [(first + sum(sizes[:i]), size) for i, size in enumerate(sizes)]


@pytest.mark.parametrize(("name", "time"), [("t500", 500.0), ("t937_5", 937.5)])
@torch.inference_mode()
def test_the_bidirectional_forward_is_the_official_one(name, time):
    out = run(golden_network(), FORWARD["in.x"][:, :9], torch.full((9,), time), [(0, 9)], None)
    torch.testing.assert_close(out, FORWARD[f"bidirectional.{name}"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", [name for name in FORWARD if name.startswith("causal")])
@torch.inference_mode()
def test_the_block_causal_forward_is_the_official_one(name):
    """All blocks in one pack, each of which reads before the next one writes."""
    _, kind, *rest = name.split(".")
    window = int(rest[0].removeprefix("window")) if len(rest) == 2 else 10
    sizes, times = SIZES[kind], FORWARD[f"in.{rest[-1]}"]
    frames = sum(sizes)
    cache = new_cache(window)
    out = run(golden_network(), FORWARD["in.x"][:, :frames], times[:, :frames], spans(sizes), cache, window)
    torch.testing.assert_close(out, FORWARD[name], atol=TOLERANCE, rtol=0)


CACHED = manifest("forward")["cache_log"]


@pytest.mark.parametrize("name", CACHED)
@torch.inference_mode()
def test_blocks_one_after_another_are_the_official_ones_and_see_as_many_keys(name):
    *_, kind = name.split(".")
    window, sink = 10, 0
    if kind.startswith("window"):
        window, sink = (int(number or 0) for number in (kind.removeprefix("window") + "_sink").split("_sink")[:2])
    cache, start = new_cache(window, sink), 500 if kind == "start500" else 0
    for block, log in enumerate(CACHED[name][: 2 if start else 3]):
        frames = slice(3 * block, 3 * block + 3)
        own, times = FORWARD["in.x"][:, frames], FORWARD["in.t_per_frame"][:, frames]
        first = log["first_frame"]
        out = run(golden_network(), own, times, [(first, 3)], cache, min(window, first + 3 - start), sink)
        torch.testing.assert_close(out, FORWARD[f"{name}.t_per_frame"][:, frames], atol=TOLERANCE, rtol=0)
        end, keys = first + 3, log["key_tokens"]
        assert cache.num_keys(max(start, end - window + sink), end - 1, "own") == keys


@pytest.mark.parametrize("name", ["kv.block3", "kv.block3.window6_sink1"])
@torch.inference_mode()
def test_the_cache_holds_the_official_keys_and_values(name):
    window, sink = (6, 1) if "window" in name else (10, 0)
    cache = new_cache(window, sink)
    for block in range(3):
        frames = slice(3 * block, 3 * block + 3)
        own, times = FORWARD["in.x"][:, frames], FORWARD["in.t_per_frame"][:, frames]
        run(golden_network(), own, times, [(3 * block, 3)], cache, window, sink)
    for layer in (0, 2):
        order = cache.positions(layer)[0, 0].argsort()  # ours by slots, theirs by age
        for which, held in zip("kv", cache.read(layer, 0 if window == 10 else 4, 8, "own"), strict=True):
            expected = FORWARD[f"{name}.cache.after9.layer{layer}.{which}"]
            torch.testing.assert_close(held[:, :, order].transpose(1, 2), expected, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_the_captions_keys_and_values_are_the_official_ones():
    caption = golden_network().caption(FORWARD["in.context"])
    for which, own in (("k", caption.keys), ("v", caption.values)):
        expected = FORWARD[f"kv.block3.crosscache.layer0.{which}"]
        torch.testing.assert_close(own[0].transpose(1, 2), expected, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_noisy_blocks_after_clean_ones_are_the_official_ones_of_teacher_forcing():
    cache, outputs = new_cache(), []
    for block in range(3):
        frames = slice(3 * block, 3 * block + 3)
        noisy, times = FORWARD["in.x"][:, frames], FORWARD["in.t_per_block"][:, frames]
        outputs.append(run(golden_network(), noisy, times, [(3 * block, 3)], cache))
        run(golden_network(), FORWARD["in.clean"][:, frames], torch.zeros(3), [(3 * block, 3)], cache)
    torch.testing.assert_close(
        torch.cat(outputs, dim=1), FORWARD["teacher_forcing.t_per_block"], atol=TOLERANCE, rtol=0
    )


@torch.inference_mode()
def test_an_adapter_merged_into_the_weights_gives_the_official_numbers():
    cache = new_cache()
    for block in (0, 1):
        own = FORWARD["in.x"][:, 3 * block : 3 * block + 3]
        times = torch.full((3,), manifest("forward")["lora"]["timestep"])
        out = run(golden_network(adapter=True), own, times, [(3 * block, 3)], cache)
        torch.testing.assert_close(out, FORWARD[f"lora.block{block}"], atol=TOLERANCE, rtol=0)
        assert (out - run(golden_network(), own, times, [(3 * block, 3)], new_cache())).abs().max() > 0.01


def test_rotary_angles_are_of_whole_video_positions_and_a_key_moved_later_is_the_later_frames():
    rope = Rotary(20, 600, 4, 3, "cpu")
    cosine, sine = rope.frames(500, 502)
    assert cosine.shape == sine.shape == (36, 1, 10)
    angle = torch.tensor(501.0, dtype=torch.float64) * 10000 ** (-1 / 4)
    assert cosine[12, 0, 1].item() == pytest.approx(angle.cos().item(), abs=1e-7)
    early, late = rope.frames(2, 2), rope.frames(9, 9)
    key = torch.randn(1, 12, 3, 20, generator=torch.Generator().manual_seed(0))
    moved = rope.later(rotate(key, early).transpose(1, 2), 7)
    torch.testing.assert_close(moved, rotate(key, late).transpose(1, 2), atol=2e-6, rtol=0)
