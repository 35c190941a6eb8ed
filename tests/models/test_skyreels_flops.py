"""The analytic FLOP count against what PyTorch counts while running, and against the paper's figures."""

from __future__ import annotations

import pytest

from eval.flops import ExecutedFlops, check
from flowcache.kv.select.joint import Joint
from flowcache.method import Method
from flowcache.models.skyreels import Sampling, SkyReels
from flowcache.models.skyreels.config import NETWORKS
from flowcache.models.skyreels.flops import paper_flops
from flowcache.models.skyreels.network import SkyReelsNetwork
from flowcache.models.wan.flops import FlopCounter
from flowcache.models.wan.unipc import noise_levels
from flowcache.sampler import sample
from flowcache.trace import Trace
from tests.methods import chunkwise, every_k, uniform, uniform_calls, vanilla
from tests.models.skyreels_goldens import small_generation, transformer

CAPTION_TOKENS = 5  # no number of keys that self-attention sees


def counted_run(method: Method, network: SkyReelsNetwork | None = None, **settings) -> Trace:
    """The trace of a small run, which says what it executed: row by row, and self- and cross-attention apart."""
    generation, trace = small_generation(method, network=network, caption_tokens=CAPTION_TOKENS, **settings), Trace()
    with ExecutedFlops() as executed:
        for _ in sample(generation, trace, executed.clock):
            pass
    assert check(executed, trace) == len(generation.schedule.rows)
    sections, parts = executed.by_section(), trace.flops_by_part()
    keys = sections["transformer"].attention_flops
    assert keys[CAPTION_TOKENS] == parts["cross_attention_flops"] > 0
    assert keys.total() - keys[CAPTION_TOKENS] == parts["self_attention_flops"] > 0
    compression = sections["compression"].flops if "compression" in sections else 0
    assert compression == trace.flops_by_kind().get("compression", 0)
    assert sections["transformer"].flops + compression == trace.flops
    assert sections["policy"].flops == 0  # times alone decide
    return trace


UNIFORM = {"distance": "rescaled_modulation", "polynomial": "skyreels_v2_1.3b_retained", "warmup_steps": 1}
METHODS = {
    "native": (vanilla(), {"context"}),
    "causal": (vanilla(attention="causal"), {"context"}),
    "cached": (vanilla(attention="cached"), {"refresh", "prefix"}),
    "stale": (vanilla(attention="cached", refresh_clean_kv=False), {"prefix"}),
    "every second": (every_k(every=2, warmup_steps=1), {"refresh", "prefix", "reuse"}),
    "uniform, native": (uniform(threshold=0.3, **UNIFORM), {"context", "reuse"}),
    "uniform, by calls": (uniform_calls(threshold=0.3, **UNIFORM), {"context", "reuse"}),
    "chunkwise": (chunkwise(threshold=0.3, **UNIFORM), {"refresh", "prefix", "reuse"}),
    "compressed": (
        chunkwise(threshold=0.3, budget="1 chunk", **UNIFORM),
        {"refresh", "prefix", "reuse", "compression"},
    ),
    "compressed, as published": (
        chunkwise(
            threshold=0.3,
            budget="1 chunk",
            refresh_clean_kv=False,
            select=Joint(timing="published", query_granularity="frame"),
            **UNIFORM,
        ),
        {"prefix", "reuse", "compression"},
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_count_of_a_run_is_what_pytorch_counts(name):
    method, kinds = METHODS[name]
    trace = counted_run(method)
    assert set(trace.flops_by_kind()) == {"caption", "time", "denoise"} | kinds
    assert (trace.computed_fraction < 1) == ("reuse" in kinds)


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"inject_sample_info": False, "ffn_dim": 64, "num_layers": 3}, {}),
        ({}, {"guidance_scale": 1.0}),
        ({}, {"clean_blocks_seen": 1}),
        ({}, {"given_latents": 3, "addnoise_condition": 20}),
        ({}, {"ar_step": 0, "causal_block_size": 1, "base_num_frames": 9, "num_chunks": 3}),
    ],
    ids=["network", "no guidance", "few clean chunks", "given frames", "in step"],
)
def test_the_count_follows_network_and_settings(changes, settings):
    network = SkyReelsNetwork(transformer(**changes)) if changes else None
    counted_run(vanilla(attention="cached"), network, **settings)


# The paper's setting, by hand count: paper.md, section 5.

TOKENS = 5 * (544 // 16) * (960 // 16)  # a chunk's: VAE and patches take 8 x 2 pixels a side
PFLOP = 1e15


def counted(attention: str) -> tuple[FlopCounter, Trace]:
    """The work of the paper's vanilla runs without running them: two branches, 135 rows."""
    counter, trace = FlopCounter(NETWORKS["1.3B"], TOKENS, 512), Trace()
    schedule = Sampling().schedule(177, noise_levels(50, 8.0)[1], 0, False)
    for row in schedule.rows:
        for chunk in row.chunks if attention == "cached" else row.visible:
            position = chunk - row.visible.start
            keys = TOKENS * (len(row.visible) if attention == "native" else position + 1)
            kind = "denoise" if chunk in row.chunks else "context"
            trace.work += [(row.index, counter.chunk(kind, chunk, keys))] * 2
    return counter, trace


@pytest.mark.parametrize(("attention", "executed"), [("native", 165.2), ("causal", 113.6), ("cached", 79.7)])
def test_vanilla_in_the_papers_setting_is_the_hand_count(attention, executed):
    assert counted(attention)[1].flops == pytest.approx(executed * PFLOP, rel=5e-3)


@pytest.mark.parametrize(("attention", "charged"), [("native", 113.6), ("causal", 113.6), ("cached", 79.7)])
def test_the_papers_accounting_charges_block_causal_attention(attention, charged):
    counter, trace = counted(attention)
    schedule = Sampling().schedule(177, noise_levels(50, 8.0)[1], 0, False)
    assert paper_flops(counter, trace, schedule) == pytest.approx(charged * PFLOP, rel=5e-3)


def test_a_forward_of_the_papers_setting_takes_421_tflops_block_causal_and_612_bidirectional():
    counter = FlopCounter(NETWORKS["1.3B"], TOKENS, 512)
    caption = counter.caption().flops  # a forward of the original embeds the caption again
    causal = sum(counter.chunk("denoise", c, (c + 1) * TOKENS).flops for c in range(5))
    assert causal + caption == pytest.approx(420.8e12, rel=5e-3)
    bidirectional = sum(counter.chunk("denoise", c, 5 * TOKENS).flops for c in range(5))
    assert bidirectional + caption == pytest.approx(611.947e12, rel=1e-5)


@pytest.fixture(scope="module")
def dry_model() -> SkyReels:
    return SkyReels.on_meta()


@pytest.mark.parametrize("attention", ["native", "causal", "cached"])
def test_a_dry_run_counts_what_a_run_would_do(dry_model, attention):
    """In the paper's setting but of two steps and two chunks: nothing is held, and nothing is computed."""
    method, trace = vanilla(attention=attention), Trace()
    generation = dry_model.generation("a cat", 37, method, 0, num_steps=2, ar_step=1)
    for _, latent in sample(generation, trace):
        assert latent.is_meta
        assert latent.shape == (16, 5, 68, 120)
    counter = FlopCounter(NETWORKS["1.3B"], TOKENS, 512)
    keys = {"native": [2, 2], "causal": [1, 2], "cached": [1, 2]}[attention]
    denoise = sum(2 * 2 * counter.chunk("denoise", c, keys[c] * TOKENS).flops for c in (0, 1))
    assert trace.flops_by_kind()["denoise"] == denoise
    assert trace.flops_by_kind()["caption"] == 2 * counter.caption().flops
    a_chunk = 2 * 2 * 30 * TOKENS * 1536 * 2  # branches, key and value, layers, bfloat16
    assert trace.kv_bytes_allocated == (2 * a_chunk if attention == "cached" else 0)
    charged = sum(2 * 2 * counter.chunk("denoise", c, (c + 1) * TOKENS).flops for c in (0, 1))
    others = {"native": 2 * (1 + 1), "causal": 2 * (1 + 1), "cached": 0}[attention]
    assert generation.paper_flops(trace) >= charged
    assert (generation.paper_flops(trace) > charged) == bool(others)


def test_a_dry_run_cannot_decide_by_distances(dry_model):
    method = uniform(threshold=0.1, **UNIFORM)
    generation = dry_model.generation("a cat", 17, method, 0, num_steps=1)
    with pytest.raises(
        ValueError, match="a dry run on device meta has no 'rescaled_modulation' distances to decide by"
    ):
        list(sample(generation))
    with pytest.raises(ValueError, match=r"size='2B' is no released SkyReels-V2; there are 1\.3B, 14B"):
        SkyReels.on_meta("2B")
