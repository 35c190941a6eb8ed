"""SkyReels-V2's network against the official numbers, diffusers' own forward, and itself in pieces."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowcache.kv.cache import KvCache
from flowcache.models.skyreels.network import SkyReelsNetwork
from flowcache.models.wan.attention import Member, Pack, rotate
from tests.models.skyreels_goldens import golden_network, manifest, tensors, transformer

FORWARD = tensors("forward")
LATENT, TIMES = FORWARD["latents"], FORWARD["t_per_frame"][0]
FRAMES, TOKENS_PER_FRAME = 10, 16


def caption(name: str = "context"):
    return golden_network().caption(FORWARD[name])


@pytest.mark.parametrize("block", [0, 1, 5])
@pytest.mark.parametrize("times", ["t_per_frame", "t_per_block", "t_scalar"])
@torch.inference_mode()
def test_the_joint_forward_is_the_official_one(times, block):
    out = golden_network().joint(LATENT, FORWARD[times].flatten(), caption(), 24, block or None)
    torch.testing.assert_close(out, FORWARD[f"out.{times}.block{block}"], atol=1e-5, rtol=0)


def test_attention_modes_are_apart_in_the_official_numbers():
    """So that agreeing with each means something."""
    for times in ("t_per_frame", "t_per_block", "t_scalar"):
        modes = [FORWARD[f"out.{times}.block{block}"] for block in (0, 1, 5)]
        assert min((a - b).abs().max() for a, b in zip(modes, modes[1:] + modes[:1], strict=True)) > 0.1


@pytest.mark.parametrize("block", [None, 5])
@torch.inference_mode()
def test_the_joint_forward_is_that_of_diffusers(block):
    theirs = transformer()
    if block:
        theirs._set_ar_attention(block)
    expected = theirs(LATENT, TIMES[None], FORWARD["context"], enable_diffusion_forcing=True, fps=[1])
    out = golden_network().joint(LATENT, TIMES, caption(), 24, block)
    torch.testing.assert_close(out, expected.sample, atol=1e-5, rtol=0)


@pytest.mark.parametrize("changes", [{"inject_sample_info": False}, {"cross_attn_norm": False}, {"ffn_dim": 64}])
@torch.inference_mode()
def test_other_networks_of_the_family_are_those_of_diffusers(changes):
    expected = transformer(**changes)(LATENT, TIMES[None], FORWARD["context"], enable_diffusion_forcing=True, fps=[0])
    network = SkyReelsNetwork(transformer(**changes))
    out = network.joint(LATENT, TIMES, network.caption(FORWARD["context"]), 16)
    torch.testing.assert_close(out, expected.sample, atol=1e-5, rtol=0)


def in_chunks(network: SkyReelsNetwork, block: int, order: list[list[int]], cache: KvCache) -> Tensor:
    """The block-causal forward in several packs against a cache, one after another."""
    table, rope = network.time_table(TIMES, 24), network.rope_table(FRAMES, 8, 8)
    tokens = TOKENS_PER_FRAME * block
    out = torch.empty_like(LATENT)
    for pack in order:
        frames = torch.cat([torch.arange(c * block, (c + 1) * block) for c in pack])
        members = tuple(Member(c, tokens, 0, c) for c in pack)
        members_rope = tuple(part[frames].flatten(0, 1) for part in rope)
        x = network.embed(LATENT[:, :, frames])
        x = network.blocks(x, table.modulation[frames], caption(), Pack(members, members_rope, cache))
        out[:, :, frames] = network.head(x, table.embedding[frames], 8, 8)
    return out


@pytest.mark.parametrize(
    ("block", "order"),
    [
        (5, [[0, 1]]),
        (5, [[0], [1]]),
        (2, [[0, 1], [2], [3, 4]]),
        (2, [[0, 1, 2, 3], [4]]),
        (1, [[i] for i in range(10)]),
        (1, [[0, 1, 2], [3], [4, 5, 6, 7, 8, 9]]),
    ],
)
@torch.inference_mode()
def test_chunks_against_the_cache_are_the_joint_block_causal_forward(block, order):
    network = golden_network()
    cache = KvCache(2, 3, 16, TOKENS_PER_FRAME * block, FRAMES // block)
    chunked = in_chunks(network, block, order, cache)
    torch.testing.assert_close(chunked, network.joint(LATENT, TIMES, caption(), 24, block), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_chunk_does_not_see_later_ones_unless_all_see_all():
    network, changed = golden_network(), LATENT.clone()
    changed[:, :, 5:] += 1.0
    for block, same in ((5, True), (None, False)):
        before, after = (network.joint(latent, TIMES, caption(), 24, block) for latent in (LATENT, changed))
        assert torch.equal(before[:, :, :5], after[:, :, :5]) == same
        assert not torch.allclose(before[:, :, 5:], after[:, :, 5:], atol=1e-2)


@torch.inference_mode()
def test_captions_frame_rates_and_times_reach_the_output():
    network = golden_network()
    base = network.joint(LATENT, TIMES, caption())
    others = [
        network.joint(LATENT, TIMES, caption("context_uncond")),
        network.joint(LATENT, TIMES, caption(), fps=16),
        network.joint(LATENT, TIMES + 1, caption()),
    ]
    assert all((base - other).abs().max() > 1e-3 for other in others)
    assert torch.equal(base, network.joint(LATENT, TIMES, caption(), fps=30))  # only 16 is told apart


def test_positions_turn_keys_by_their_place_in_the_window():
    cosine, sine = golden_network().rope_table(3, 8, 8)
    assert cosine.shape == sine.shape == (3, 16, 1, 8)
    torch.testing.assert_close(cosine**2 + sine**2, torch.ones_like(cosine))
    assert not torch.allclose(cosine[0], cosine[1])
    x = torch.randn(1, 16, 3, 16, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, (cosine[2], sine[2]))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotate(turned, (cosine[2], -sine[2])), x, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_bfloat16_network_keeps_its_type_and_gives_float32():
    network = SkyReelsNetwork(transformer().to(torch.bfloat16))
    out = network.joint(LATENT, TIMES, network.caption(FORWARD["context"]))
    assert network.dtype == network.embed(LATENT).dtype == torch.bfloat16
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, FORWARD["out.t_per_frame.block0"], atol=0.3, rtol=0)


def test_networks_and_windows_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match="takes image embeddings or patches of several frames; use a diffusion-forcing"
    ):
        SkyReelsNetwork(transformer(image_dim=8, added_kv_proj_dim=48))
    with pytest.raises(ValueError, match="1030 latent frames are more than the network's 1024 positions"):
        golden_network().rope_table(1030, 8, 8)
    with pytest.raises(ValueError, match="10 latent frames are not whole chunks of 3"):
        golden_network().joint(LATENT, TIMES, caption(), 24, 3)


def test_every_original_name_has_its_place_in_diffusers():
    from flowcache.models.skyreels.checkpoint import diffusers_name

    for original, theirs in manifest("forward")["key_map"].items():
        assert diffusers_name(original) == theirs
        assert diffusers_name(original.replace("blocks.0.", "blocks.17.")) == theirs.replace("blocks.0.", "blocks.17.")
