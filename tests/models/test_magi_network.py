"""The transformer against the official code's numbers (goldens/magi: a_, b_, c_, e1_), and its own invariants."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowcache.kv.cache import KvCache
from flowcache.models.magi.attention import Member, Pack, ParallelAttention
from flowcache.models.magi.config import DitConfig
from flowcache.models.magi.network import MagiDit, step_size_number
from tests.models.magi_goldens import (
    TOKENS_PER_CHUNK,
    dit_config,
    golden_dit,
    manifest,
    null_caption,
    packed_caption,
    tensors,
)

VARIANTS = ("mlp_base", "glu_base", "mlp_distill", "glu_distill")
CACHED_VARIANTS = ("mlp_base", "glu_distill")  # those the c_ and e1_ files hold
SMALL = DitConfig(
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=16,
    caption_channels=8,
    caption_max_length=5,
)


def tolerance(variant: str) -> float:
    """Of goldens/magi/README.md."""
    return 5e-4 if "distill" in variant else 1e-4


def step_size(num_steps: int = 8, interval: float = 1.0) -> float:
    return step_size_number(num_steps, interval)


def close(actual: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def first_chunks(ranges: Tensor) -> list[int]:
    """The oldest chunk of each official range of keys [start, end), in tokens."""
    return [start // TOKENS_PER_CHUNK for start, _ in ranges.tolist()]


def cache_for(dit: MagiDit, num_chunks: int, tokens: int = TOKENS_PER_CHUNK) -> KvCache:
    c = dit.config
    return KvCache(c.num_layers, c.num_query_groups, c.kv_channels, tokens, num_chunks, dtype=c.params_dtype)


def as_official(cache: KvCache, layer: int, first: int, last: int) -> Tensor:
    """Entries of chunks first..last in the layout of the golden files: [tokens, heads, key | value]."""
    key, value = cache.read(layer, first, last)
    return torch.cat([key, value], dim=-1)[0].transpose(0, 1)


def random_dit(config: DitConfig, seed: int = 0) -> MagiDit:
    """All parameters random and none zero."""
    random = torch.Generator().manual_seed(seed)
    dit = MagiDit(config).requires_grad_(False)
    for name, parameter in dit.named_parameters():
        if name != "rope.bands":
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=random))
    return dit.eval()


# One chunk.


@pytest.fixture(scope="module")
def one_chunk() -> dict[str, Tensor]:
    return tensors("a_forward_1chunk")


def run_one(given: dict[str, Tensor], variant: str, x: str = "in.x", position: int = 0, **options) -> Tensor:
    dit = golden_dit(variant)
    caption = packed_caption(dit, given["in.y"][0], given["in.xattn_mask"])
    options = {"step_size": step_size()} | options
    return dit(given[x], dit.gates(given["in.t"], **options), [Member(position, caption, first_key_chunk=position)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_chunk_matches_the_official_code(one_chunk, variant):
    close(run_one(one_chunk, variant), one_chunk[f"out.{variant}"], tolerance(variant))


@pytest.mark.parametrize(
    ("case", "options", "atol"),
    [
        ("mlp_base.dropped", {"dropped": torch.tensor([[True]])}, 1e-4),
        ("mlp_base.odd_size", {"x": "in.x_odd"}, 1e-4),
        ("mlp_base.slice3", {"position": 3}, 1e-4),
        ("mlp_base.steps12_interval2", {"step_size": step_size(12, 2.0)}, 1e-4),
        ("mlp_distill.steps12_interval2", {"step_size": step_size(12, 2.0)}, 5e-4),
        ("mlp_distill.steps64", {"step_size": step_size(64)}, 3e-3),
    ],
)
def test_variations_of_one_chunk_match_the_official_code(one_chunk, case, options, atol):
    close(run_one(one_chunk, case.split(".")[0], **options), one_chunk[f"out.{case}"], atol)


def test_intermediates_of_one_chunk_match_the_official_code(one_chunk, monkeypatch):
    """Every mid.* tensor that a module or function of ours returns; the first to be off points at the fault."""
    dit = golden_dit("mlp_base")
    first = dit.videodit_blocks.layers[0]
    modules = {
        "y_xattn_flat": dit.y_embedder.y_proj_xattn,
        "layer0.gate_before_tanh": first.ada_modulate_layer.proj,
        "layer0.linear_proj_out": first.self_attention,
        "final_norm": dit.videodit_blocks.final_layernorm,
    }
    modules |= {f"layer{i}.out": layer for i, layer in enumerate(dit.videodit_blocks.layers)}
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: seen.setdefault(name, out))
        for name, module in modules.items()
    ]
    attended: list[Tensor] = []

    attend = ParallelAttention._attend

    def spy(*arguments: object) -> Tensor:
        attended.append(attend(*arguments))
        return attended[-1]

    monkeypatch.setattr(ParallelAttention, "_attend", spy)
    try:
        run_one(one_chunk, "mlp_base")
    finally:
        for hook in hooks:
            hook.remove()
    seen["layer0.self_attn_out"], seen["layer0.cross_attn_out"] = attended[:2]
    seen["embed"] = dit.embed(one_chunk["in.x"])
    seen["condition"] = dit.condition(one_chunk["in.t"], torch.tensor([[False]]))
    own, partners = dit.rope(torch.arange(6), 4, 3)
    width = own.shape[-1] * 3 // 8
    seen["rope_sin_cos"] = torch.cat([partners[..., width : 2 * width], own[..., :width]], dim=-1).squeeze(1)
    expected = {name.removeprefix("mid."): value for name, value in one_chunk.items() if name.startswith("mid.")}
    # The projection's input exists here only inside an expression; its output is compared.
    assert set(expected) - set(seen) == {"layer0.linear_proj_in"}
    for name, value in seen.items():
        # Official hidden states are [tokens, batch, channels] with a batch of one.
        close(value.reshape(expected[name].shape), expected[name], 1e-4)


# Several chunks.


@pytest.mark.parametrize("case", [*VARIANTS, "mlp_base.windowed", "mlp_distill.windowed"])
def test_several_chunks_match_the_official_code(case):
    variant, _, windowed = case.partition(".")
    given, dit = tensors("b_forward_3chunks"), golden_dit(variant)
    captions = [packed_caption(dit, y, mask) for y, mask in zip(given["in.y"], given["in.xattn_mask"], strict=True)]
    firsts = first_chunks(given["in.kv_range_windowed" if windowed else "in.kv_range"])
    members = [Member(i, caption, first) for i, (caption, first) in enumerate(zip(captions, firsts, strict=True))]
    velocity = dit(given["in.x"], dit.gates(given["in.t"], step_size=step_size()), members)
    close(velocity, given[f"out.{case}"], tolerance(variant))


@pytest.mark.parametrize("variant", CACHED_VARIANTS)
def test_calls_that_share_a_cache_match_the_official_code(variant):
    given, dit, atol = tensors("c_forward_kvcache"), golden_dit(variant), tolerance(variant)
    noisy = [packed_caption(dit, y, mask) for y, mask in zip(given["in.y_noisy"], given["in.mask_noisy"], strict=True)]
    cache = cache_for(dit, 4)

    def call(x: Tensor, times: Tensor, captions: list, ranges: Tensor, into: KvCache) -> Tensor:
        position = 3 - len(captions)
        firsts = first_chunks(ranges)
        members = [Member(position + i, c, f) for i, (c, f) in enumerate(zip(captions, firsts, strict=True))]
        return dit(x, dit.gates(times, step_size=step_size()), members, into)

    captions = [null_caption(dit), *noisy]
    out = call(given["in.x1"], given["in.t1"], captions, given["in.kv_range1"], cache)
    close(out, given[f"out.{variant}.call1"], atol)
    for layer in (0, 2):
        if (name := f"kv.{variant}.after_call1.layer{layer}") in given:
            close(as_official(cache, layer, 0, 2), given[name], atol)

    out = call(given["in.x2"], given["in.t2"], noisy, given["in.kv_range2"], cache)
    close(out, given[f"out.{variant}.call2"], atol)
    if (name := f"kv.{variant}.after_call2.layer2") in given:
        close(as_official(cache, 2, 1, 2), given[name], atol)

    # Upstream's third call leaves the cache alone; ours is given a copy.
    aside, before = copy.deepcopy(cache), as_official(cache, 2, 0, 3).clone()
    out = call(given["in.x1"][:, :, 6:], given["in.t2"], noisy, given["in.kv_range2"], aside)
    close(out, given[f"out.{variant}.call3"], atol)
    assert torch.equal(as_official(cache, 2, 0, 3), before)
    assert not torch.equal(as_official(aside, 2, 0, 3), before)


@pytest.mark.parametrize("variant", CACHED_VARIANTS)
def test_dispatched_calls_match_the_official_code(variant):
    """Guidance 1: without cache, then filling it from a clean chunk on, then reading the clean chunk from it."""
    given, dit, atol = tensors("e1_dispatch_cfg1"), golden_dit(variant), tolerance(variant)
    cache, null = cache_for(dit, 5), null_caption(dit)
    for call, into in ((1, None), (2, cache), (3, cache)):
        caption = packed_caption(dit, given[f"in.caption{call}"][0], given[f"in.caption_mask{call}"])
        firsts = first_chunks(given[f"in.kv_range{call}"])
        arguments = manifest("e1_dispatch_cfg1")[f"kwargs{call}"]
        position, clean_frames = arguments["slice_point"], 6 * arguments["fwd_extra_1st_chunk"]
        captions = [caption] * len(firsts)
        if clean_frames:
            captions[0] = null
        members = [Member(position + i, c, f) for i, (c, f) in enumerate(zip(captions, firsts, strict=True))]
        x, expected = given[f"in.x{call}"], given[f"out.{variant}.call{call}"]
        velocity = dit(x, dit.gates(given[f"in.t{call}"], step_size=step_size()), members, into)
        # In place of a clean chunk's velocity, which nobody uses, the dispatcher returns its input.
        assert torch.equal(expected[:, :, :clean_frames], x[:, :, :clean_frames])
        close(velocity[:, :, clean_frames:], expected[:, :, clean_frames:], atol)
    if (name := f"kv.{variant}.after_call3.layer2") in given:
        close(as_official(cache, 2, 0, 2), given[name], atol)


# Invariants.


@pytest.fixture(scope="module")
def pack() -> tuple[MagiDit, Tensor, Tensor, list[Member]]:
    given, dit = tensors("b_forward_3chunks"), golden_dit("mlp_base")
    captions = [packed_caption(dit, y, mask) for y, mask in zip(given["in.y"], given["in.xattn_mask"], strict=True)]
    return dit, given["in.x"], dit.gates(given["in.t"]), [Member(i, caption) for i, caption in enumerate(captions)]


def test_one_chunk_at_a_time_with_a_cache_equals_all_together(pack):
    dit, x, gates, members = pack
    cache = cache_for(dit, 3)
    pieces = [
        dit(x[:, :, 6 * i : 6 * i + 6], gates[:, :, i : i + 1], [member], cache) for i, member in enumerate(members)
    ]
    close(torch.cat(pieces, dim=2), dit(x, gates, members), 1e-5)
    close(torch.cat(pieces, dim=2), dit(x, gates, members, cache_for(dit, 3)), 1e-5)


def test_a_chunk_never_sees_a_later_one(pack):
    dit, x, gates, members = pack
    changed = x.clone()
    changed[:, :, 12:] += 1.0
    before, after = dit(x, gates, members), dit(changed, gates, members)
    assert torch.equal(before[:, :, :12], after[:, :, :12])
    assert not torch.equal(before[:, :, 12:], after[:, :, 12:])


def test_a_lone_member_sees_only_itself_and_leaves_the_cache_alone(pack):
    dit, x, gates, members = pack
    cache = cache_for(dit, 3)
    dit(x, gates, members, cache)
    before = [as_official(cache, layer, 0, 2).clone() for layer in range(3)]
    lone = replace(members[2], alone=True)
    alone = dit(x[:, :, 12:], gates[:, :, 2:], [lone], cache)
    assert all(torch.equal(as_official(cache, layer, 0, 2), before[layer]) for layer in range(3))
    close(alone, dit(x[:, :, 12:], gates[:, :, 2:], [replace(members[2], first_key_chunk=2)]), 1e-5)
    beside = dit(torch.cat([x, x[:, :, 12:]], dim=2), gates[:, :, [0, 1, 2, 2]], [*members, lone], cache)
    close(beside[:, :, 18:], alone, 1e-5)


def test_a_lone_chunk_does_not_depend_on_its_position(pack):
    """Rotary positions are relative; upstream passes the lone chunks of guidance 3 at position 0."""
    dit, x, gates, members = pack
    outs = [dit(x[:, :, :6], gates[:, :, :1], [Member(p, members[0].caption, alone=True)]) for p in (0, 5)]
    close(outs[0], outs[1], 1e-5)


def test_the_rope_table_gives_the_rotation_that_the_forward_works_out(pack):
    dit, x, gates, members = pack
    table = dit.rope_table(5, 6, 8, 6)
    rope = tuple(torch.cat([part[member.position] for member in members]) for part in table)
    close(dit(x, gates, members, rope=rope), dit(x, gates, members), 1e-5)  # sines of more positions at once


def test_a_batch_equals_its_rows_one_at_a_time(pack):
    """Captions of different lengths, padded under a mask."""
    dit = pack[0]
    given = tensors("b_forward_3chunks")
    features, mask = given["in.y"][:2, 0], given["in.xattn_mask"][:2, 0].bool()
    assert mask[0].sum() != mask[1].sum()
    x, times = torch.cat([given["in.x"][:, :, :6], given["in.x"][:, :, 6:12]]), given["in.t"][0, :2, None]
    gates = dit.gates(times)
    together = dit(x, gates, [Member(1, dit.caption_kv(features, mask), first_key_chunk=1)])
    for row in range(2):
        caption = packed_caption(dit, features[row : row + 1], mask[row])
        alone = dit(x[row : row + 1], gates[:, row : row + 1], [Member(1, caption, first_key_chunk=1)])
        close(together[row : row + 1], alone, 1e-5)


def test_the_caption_and_its_dropping_matter(pack):
    dit, x, gates, members = pack
    reference = dit(x, gates, members)
    other = [replace(members[0], caption=members[1].caption), *members[1:]]
    assert not torch.allclose(dit(x, gates, other), reference, atol=1e-3)
    dropped = torch.tensor([[True, False, False]])
    times = tensors("b_forward_3chunks")["in.t"]
    changed = dit(x, dit.gates(times, dropped), [replace(m, first_key_chunk=m.position) for m in members])
    kept = dit(x, gates, [replace(m, first_key_chunk=m.position) for m in members])
    assert not torch.allclose(changed[:, :, :6], kept[:, :, :6], atol=1e-3)
    assert torch.equal(changed[:, :, 6:], kept[:, :, 6:])


def test_attention_is_that_of_repeated_key_value_heads():
    """Two members of five tokens, the second under a mask as a ragged batch of captions has it."""
    layer = ParallelAttention(SMALL, layer=0)
    random = torch.Generator().manual_seed(0)
    query = torch.randn(2, 10, 4, 16, generator=random)
    key, value = torch.randn(2, 2, 2, 7, 16, generator=random)
    mask = torch.rand(2, 1, 1, 7, generator=random) < 0.7
    mask[..., 0] = True
    pack = Pack((), (query, query), None, (slice(0, 5), slice(5, 10)))
    out = layer._attend(layer._fold(query), [(key, value, None), (key, value, mask)], pack)
    scores = query.transpose(1, 2) @ key.repeat_interleave(2, dim=1).transpose(-1, -2) / 4
    scores[:, :, 5:].masked_fill_(~mask, -torch.inf)
    close(out, (scores.softmax(-1) @ value.repeat_interleave(2, dim=1)).transpose(1, 2).flatten(-2), 1e-5)


def test_half_channel_latents_are_doubled_in_and_halved_out():
    full = random_dit(replace(SMALL, in_channels=32, out_channels=32))
    half = random_dit(replace(SMALL, in_channels=32, out_channels=32, half_channel_vae=True))
    assert half.config.latent_channels == 16
    random = torch.Generator().manual_seed(1)
    x, y = torch.randn(1, 16, 2, 4, 4, generator=random), torch.randn(1, 3, 8, generator=random)
    times = torch.tensor([[0.4]])
    velocity = half(x, half.gates(times), [Member(0, half.caption_kv(y))])
    whole = full(torch.cat([x, x], dim=1), full.gates(times), [Member(0, full.caption_kv(y))])
    assert velocity.shape == x.shape
    close(velocity, whole[:, :16], 1e-6)


def test_rescaling_multiplies_the_input_and_divides_the_velocity():
    plain, rescaled = random_dit(SMALL), random_dit(replace(SMALL, x_rescale_factor=2.0))
    random = torch.Generator().manual_seed(1)
    x, y = torch.randn(1, 16, 2, 4, 4, generator=random), torch.randn(1, 3, 8, generator=random)
    times = torch.tensor([[0.4]])
    expected = plain(2.0 * x, plain.gates(times), [Member(0, plain.caption_kv(y))]) / 2.0
    close(rescaled(x, rescaled.gates(times), [Member(0, rescaled.caption_kv(y))]), expected, 1e-6)


def test_time_patches_group_frames():
    dit = random_dit(replace(SMALL, t_patch_size=2))
    random = torch.Generator().manual_seed(1)
    x, y = torch.randn(1, 16, 4, 4, 4, generator=random), torch.randn(1, 3, 8, generator=random)
    assert dit.embed(x).shape == (1, 2 * 2 * 2, 64)
    members = [Member(i, dit.caption_kv(y)) for i in range(2)]
    velocity = dit(x, dit.gates(torch.tensor([[0.4, 0.2]])), members)
    assert velocity.shape == x.shape
    first = dit(x[:, :, :2], dit.gates(torch.tensor([[0.4]])), members[:1])
    close(velocity[:, :, :2], first, 1e-5)


def test_bfloat16_parameters_stay_near_float32(one_chunk):
    dit = MagiDit(dit_config(params_dtype=torch.bfloat16))
    dit.load_state_dict(golden_dit("mlp_base").state_dict())
    dit.eval().requires_grad_(False)
    norm = dit.videodit_blocks.layers[0].self_attention.q_layernorm
    assert (dit.embed(one_chunk["in.x"]).dtype, norm.weight.dtype) == (torch.bfloat16, torch.float32)
    caption = packed_caption(dit, one_chunk["in.y"][0], one_chunk["in.xattn_mask"])
    cache = cache_for(dit, 1)
    velocity = dit(one_chunk["in.x"], dit.gates(one_chunk["in.t"]), [Member(0, caption)], cache)
    expected = one_chunk["out.mlp_base"]
    assert velocity.dtype == torch.float32
    assert (velocity - expected).norm() / expected.norm() < 0.03
    assert not torch.equal(velocity, expected)


def test_the_step_size_number_is_the_official_one():
    assert [step_size_number(n, 1.0) for n in (8, 16, 64)] == [4.0, 8.0, 32.0]
    assert [step_size_number(12, interval) for interval in (1.0, 2.0)] == [8.0, 4.0]
    assert step_size_number(64, 2.0) == 32.0


def test_impossible_sizes_are_refused():
    for name in ("xattn_cond_hidden_ratio", "cond_gating_ratio"):
        with pytest.raises(ValueError, match=r"xattn_cond_hidden_ratio and cond_gating_ratio must be 1.0"):
            replace(SMALL, **{name: 0.5})
    with pytest.raises(ValueError, match="4 query heads cannot share 3 key-value heads evenly"):
        replace(SMALL, num_query_groups=3)
    with pytest.raises(ValueError, match=r"num_attention_heads \* kv_channels = 12 must be a multiple of 8"):
        replace(SMALL, kv_channels=3)
