"""The analytic FLOP count against what PyTorch counts while running, and against the paper's figure."""

from __future__ import annotations

import pytest
import torch

from eval.flops import ExecutedFlops, check
from flowcache.kv.select.joint import Joint
from flowcache.method import Method
from flowcache.models.magi import Magi
from flowcache.models.magi.config import NETWORKS, Runtime
from flowcache.models.magi.flops import FlopCounter
from flowcache.models.magi.network import MagiDit
from flowcache.sampler import sample
from flowcache.schedule import staged_schedule, timesteps
from flowcache.trace import Trace
from tests.methods import chunkwise, every_k, uniform, vanilla
from tests.models.magi_goldens import GUIDANCE_3, dit_config, small_generation

THRESHOLD = 0.1  # reuses some steps of random weights and not all
TOKENS_PER_CHUNK = 24  # of the small generations; their captions have 5 to 12


def counted_run(method: Method, dit: MagiDit, **settings) -> tuple[ExecutedFlops, Trace]:
    """What a small run executed, the making of its captions as section "text", and its trace."""
    trace = Trace()
    with ExecutedFlops() as executed, torch.inference_mode():
        with executed.clock("text"):
            generation = small_generation(method, dit=dit, **{"num_steps": 4} | settings)
        for _ in sample(generation, trace, executed.clock):
            pass
    return executed, trace


def assert_counted(executed: ExecutedFlops, trace: Trace) -> None:
    """The trace says what ran: row by row, captions, compression, and self- and cross-attention apart."""
    check(executed, trace)
    sections, kinds, parts = executed.by_section(), trace.flops_by_kind(), trace.flops_by_part()
    assert sections["text"].flops == kinds["caption"] > 0
    keys = sections["transformer"].attention_flops
    own = sum(flops for length, flops in keys.items() if length % TOKENS_PER_CHUNK == 0)
    assert own == parts["self_attention_flops"] > 0
    assert keys.total() - own == parts["cross_attention_flops"] > 0
    compression = sections["compression"].flops if "compression" in sections else 0
    assert compression == kinds.get("compression", 0)
    assert sections["text"].flops + sections["transformer"].flops + compression == trace.flops


def two_layers(**changes) -> MagiDit:
    return MagiDit(dit_config(num_layers=2, **changes)).eval().requires_grad_(False)


SETTINGS = {
    "guidance 1": ({}, {"near_clean", "refresh"}),
    "no near-clean": ({"near_clean_threshold": 1.0}, {"refresh"}),
    "guidance 3": (GUIDANCE_3, {"refresh"}),
    "prefix": ({"prefix_frames": 14, "num_chunks": 4}, {"near_clean", "refresh", "prefix"}),
    "guidance 3, prefix": (GUIDANCE_3 | {"prefix_frames": 6}, {"refresh", "prefix"}),
    "look-back": ({"noise2clean_kvrange": (3, 2, 2, 1), "num_chunks": 5}, {"near_clean", "refresh"}),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_count_of_a_run_is_what_pytorch_counts(setting):
    runtime, kinds = SETTINGS[setting]
    executed, trace = counted_run(vanilla(), two_layers(), **runtime)
    assert set(trace.flops_by_kind()) == {"caption", "time", "denoise"} | kinds
    assert_counted(executed, trace)


COMPRESSED = {"budget": "1 chunk"}
PUBLISHED = Joint(timing="published", query_granularity="frame")
REUSING = {
    "every third": every_k(every=3, warmup_steps=1),
    "uniform": uniform(threshold=THRESHOLD, warmup_steps=1),
    "chunkwise": chunkwise(threshold=THRESHOLD, warmup_steps=1),
    "without near-clean": chunkwise(threshold=THRESHOLD, warmup_steps=1, near_clean=False),
    "compressed": chunkwise(threshold=THRESHOLD, warmup_steps=1, **COMPRESSED),
    "compressed, vanilla": vanilla(**COMPRESSED),
    "compressed, as published": chunkwise(
        threshold=THRESHOLD, warmup_steps=1, refresh_clean_kv=False, select=PUBLISHED, **COMPRESSED
    ),
}


@pytest.mark.parametrize("name", REUSING)
def test_the_count_of_a_run_with_reuse_is_what_pytorch_counts(name):
    """And deciding takes the embedding of the active chunks, which no method's count holds, and nothing else."""
    method, dit = REUSING[name], two_layers()
    executed, trace = counted_run(method, dit, num_chunks=6, num_steps=8)  # the published compression needs six
    assert_counted(executed, trace)
    assert (trace.computed_fraction < 1) == method.reuse.skips
    kinds = trace.flops_by_kind().keys()
    assert ("compression" in kinds) == (method.kv.budget is not None)
    assert ("near_clean" in kinds) == method.near_clean
    assert ("refresh" in kinds) == method.refresh_clean_kv
    embedding = 2 * TOKENS_PER_CHUNK * dit.config.hidden_size * dit.config.in_channels * dit.config.patch_size**2
    measured = 0 if method.reuse.distance is None else len(trace.entries)
    assert executed.by_section()["policy"].flops == measured * embedding


def test_counting_changes_nothing():
    method, dit = chunkwise(threshold=THRESHOLD, warmup_steps=1), two_layers()
    generations = [small_generation(method, num_steps=4, dit=dit) for _ in range(2)]
    list(sample(generations[0]))
    with ExecutedFlops():
        list(sample(generations[1]))
    assert torch.equal(generations[0].latents, generations[1].latents)


@pytest.mark.parametrize(
    "changes",
    [
        {"gated_linear_unit": True, "distill": True},
        {"in_channels": 32, "out_channels": 32, "half_channel_vae": True},
        {"num_query_groups": 6, "cond_hidden_ratio": 0.5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_count_follows_the_network(changes):
    assert_counted(*counted_run(vanilla(), two_layers(**changes), num_chunks=2))


# The paper's setting, by hand count: paper.md, section 5.

PAPER = NETWORKS["4.5B"]
TOKENS = 6 * (720 // 16) ** 2  # a chunk's: VAE and patches take 8 x 2 pixels a side
CHUNKS, STEPS = 10, 64


def paper_run(caption_tokens: int) -> dict[str, int]:
    """FLOPs by kind of the paper's vanilla run: 10 chunks of 720 x 720 in 64 steps, guidance 1."""
    counter, schedule, runtime = FlopCounter(PAPER, TOKENS), staged_schedule(CHUNKS, timesteps(STEPS)), Runtime()
    flops = {"denoise": 0, "near_clean": 0, "refresh": 0}
    for row in schedule.rows:
        for chunk in row.chunks:
            flops["denoise"] += counter.chunk("denoise", chunk, TOKENS * (chunk + 1), caption_tokens).flops
        if row.oldest.t > runtime.near_clean_threshold:
            flops["near_clean"] += counter.chunk("near_clean", row.oldest.chunk, TOKENS, caption_tokens).flops
    for chunk in range(CHUNKS - 1):
        flops["refresh"] += counter.chunk("refresh", chunk, TOKENS * (chunk + 1), 50).flops
    return flops


def test_a_chunk_forward_of_the_paper_is_the_hand_count():
    work = FlopCounter(PAPER, TOKENS).chunk("denoise", 0, TOKENS, 0)
    assert work.gemm_flops == pytest.approx(98.8e12, rel=5e-3)
    assert work.self_attention_flops == pytest.approx(61.7e12, rel=5e-3)
    three_chunks_back = FlopCounter(PAPER, TOKENS).chunk("denoise", 2, 3 * TOKENS, 0)
    assert three_chunks_back.self_attention_flops == 3 * work.self_attention_flops
    assert three_chunks_back.gemm_flops == work.gemm_flops


@pytest.mark.parametrize("caption_tokens", [0, 100, 512])
def test_vanilla_in_the_papers_setting_takes_306_pflops(caption_tokens):
    """Denoising and near-clean forwards; the refreshes of finished chunks, 1.2 % more, are not in the figure."""
    flops = paper_run(caption_tokens)
    assert flops["denoise"] + flops["near_clean"] == pytest.approx(306e15, rel=0.01)
    assert flops["refresh"] == pytest.approx(0.012 * 306e15, rel=0.02)


def test_parts_of_the_papers_figure():
    without_captions = paper_run(0)
    assert without_captions["denoise"] == pytest.approx(280.3e15, rel=1e-3)
    # Each chunk's last 16 of 64 steps lie beyond t = 0.3, whoever else is active.
    counter = FlopCounter(PAPER, TOKENS)
    assert without_captions["near_clean"] == CHUNKS * 16 * counter.chunk("near_clean", 0, TOKENS, 0).flops
    longest = paper_run(800)
    cross = sum(longest[kind] - without_captions[kind] for kind in ("denoise", "near_clean"))
    assert cross == pytest.approx(3.25e15, rel=5e-3)


def test_caption_keys_are_counted_once_a_generation():
    counter = FlopCounter(PAPER, TOKENS)
    work = counter.caption(0, 800)
    assert work.kind == "caption"
    assert work.flops == 2 * 800 * (4096 * 3072 + 34 * 3072 * 2 * 1024)
    assert [counter.caption(0, n).flops * 2 for n in (1, 10)] == [counter.caption(0, 2 * n).flops for n in (1, 10)]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("distill", [False, True])
def test_counts_are_exactly_linear_in_keys_and_caption(gated, distill):
    counter = FlopCounter(dit_config(gated_linear_unit=gated, distill=distill), 72)
    base, keys, text = (counter.chunk("denoise", 0, k, c) for k, c in ((72, 5), (144, 5), (72, 10)))
    assert keys.self_attention_flops == 2 * base.self_attention_flops
    assert text.cross_attention_flops == 2 * base.cross_attention_flops
    assert keys.gemm_flops == text.gemm_flops == base.gemm_flops


def test_a_dry_run_counts_what_a_run_would_do():
    """In the paper's setting but of four steps and two chunks: nothing is held, and nothing is computed."""
    method, trace = vanilla(), Trace()
    generation = Magi.on_meta(caption_tokens=10).generation("a cat", 48, method, 0, num_steps=4)
    for _, latent in sample(generation, trace):
        assert latent.is_meta
        assert latent.shape == (16, 6, 90, 90)
    counter = FlopCounter(PAPER, TOKENS)
    kinds = trace.flops_by_kind()
    caption = 10 + 2  # two special tokens in front
    denoise = sum(4 * counter.chunk("denoise", c, TOKENS * (c + 1), caption).flops for c in (0, 1))
    near_clean = 2 * counter.chunk("near_clean", 0, TOKENS, caption).flops  # t > 0.3 in a chunk's last step
    assert (kinds["denoise"], kinds["near_clean"]) == (denoise, near_clean)
    assert kinds["refresh"] == counter.chunk("refresh", 0, TOKENS, 50).flops
    assert kinds["caption"] == 2 * counter.caption(0, caption).flops + counter.caption(-1, 50).flops
    assert generation.paper_flops(trace) == denoise + near_clean
    assert trace.kv_bytes_allocated == 2 * 2 * 34 * TOKENS * 1024 * 2  # chunks, key and value, layers, bfloat16


def test_a_dry_run_of_guidance_3_takes_every_pass_and_of_24b_its_sizes():
    traces = {}
    for size, guidance in (("4.5B", 1), ("4.5B", 3), ("24B", 1)):
        method, trace = vanilla(), Trace()
        generation = Magi.on_meta(size).generation("a cat", 24, method, 0, num_steps=4, cfg_number=guidance)
        assert [tuple(latent.shape) for _, latent in sample(generation, trace)] == [(16, 6, 90, 90)]
        traces[size, guidance] = trace.flops_by_kind()["denoise"]
    counter = FlopCounter(PAPER, TOKENS)
    null = 4 * counter.chunk("denoise", 0, TOKENS, 50).flops
    assert traces["4.5B", 3] == traces["4.5B", 1] + 2 * null
    large = FlopCounter(NETWORKS["24B"], TOKENS).chunk("denoise", 0, TOKENS, 102).flops
    assert traces["24B", 1] == 4 * large


def test_what_a_dry_model_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"size='5B' is no released MAGI-1; there are 4\.5B, 24B"):
        Magi.on_meta("5B")
    with pytest.raises(ValueError, match="caption_tokens=0 must be a whole number of at least 1"):
        Magi.on_meta(caption_tokens=0)
    with pytest.raises(FileNotFoundError, match="no MAGI-1 configuration at"):
        Magi.on_meta(checkpoint="nowhere")
    image = torch.zeros(720, 720, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="this model has no VAE; load it from a checkpoint"):
        Magi.on_meta().generation("a cat", 24, vanilla(), 0, image=image)
