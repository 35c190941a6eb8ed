"""Published selectors of language models against what the official code gives (tests/goldens/kv_selectors/README.md).

There queries are the newest of the keys' own tokens; here they come from outside. The tests hand each function the keys
that it is to see, and keep the window's own keys as the newest.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.h2o import H2o
from baselines.key_norm import KeyNorm
from baselines.r_kv import RKv
from baselines.sink_recent import SinkRecent
from baselines.snapkv import pooled
from baselines.tova import Tova
from flowcache.kv.select.base import Entries, keep_best
from flowcache.kv.select.joint import Joint
from flowcache.kv.select.scores import attention_received, importance
from tests.golden_files import manifest, tensors
from tests.methods import select_keys

MANIFEST = manifest("kv_selectors/kv_selectors")
CASES: dict[str, Any] = MANIFEST["cases"]
TENSORS = tensors("kv_selectors/kv_selectors")
TOLERANCE, SUMS_TOLERANCE = 5e-7, 5e-6
FRAME = 12
SETS = tuple(MANIFEST["sets"])


def named(part: str) -> list[str]:
    return [name for name in CASES if part in name]


def drawn(name: str) -> tuple[Tensor, Tensor]:
    """A case's queries [H, L, E] and keys [G, L, E]."""
    own = name.split(".")[0]
    return TENSORS[f"{own}.query"], TENSORS[f"{own}.key"]


def repeated(query: Tensor, key: Tensor) -> Tensor:
    """Keys once for each query head, as the codes that have a set for every query head see them."""
    return key.repeat_interleave(len(query) // len(key), dim=0)


def with_window(score: Tensor, budget: int, window: int) -> Tensor:
    """The best keys before the window, and the window: int64 [heads, budget]."""
    newest = torch.arange(score.shape[-1], score.shape[-1] + window).expand(len(score), -1)
    return torch.cat([keep_best(score, budget - window).indices, newest], dim=-1)


def causal(query: Tensor, key: Tensor, of: int) -> Tensor:
    """Attention of each of the newest ``of`` queries to the keys up to its own: [G, R, of, L]."""
    rows = []
    for last in range(key.shape[-2] - of, key.shape[-2]):
        received = attention_received(query[:, last : last + 1], key[:, : last + 1])
        rows.append(torch.nn.functional.pad(received, (0, key.shape[-2] - last - 1)))
    return torch.stack(rows, dim=-2)


def assert_kept(kept: Tensor, name: str) -> None:
    assert CASES[name].get("gap", 1.0) > 0
    assert torch.equal(kept.sort().values, TENSORS[f"{name}.kept"].long().sort().values)


@pytest.mark.parametrize("name", [n for n in named(".rkv.") if n.endswith((".last", ".last_percent"))])
def test_r_kv_scores_and_keeps_what_the_official_code_does(name):
    case, (query, key) = CASES[name], drawn(name)
    before = key.shape[-2] - case["window"]
    select = RKv(mix_lambda=case["mix_lambda"], pool_kernel=case["kernel"])
    own, direction = name.split(".")[0], name.rsplit(".", 1)[1]
    important = importance(query[:, before:], key[:, :before], case["kernel"])
    torch.testing.assert_close(important, TENSORS[f"{own}.rkv.importance"], atol=TOLERANCE, rtol=0)
    redundant = select.redundancy(key)
    torch.testing.assert_close(redundant, TENSORS[f"{own}.rkv.redundancy.{direction}"], atol=TOLERANCE, rtol=0)
    score = case["mix_lambda"] * important - (1 - case["mix_lambda"]) * redundant[:, :before]
    torch.testing.assert_close(score, TENSORS[f"{name}.score"], atol=TOLERANCE, rtol=0)
    assert_kept(with_window(score, case["budget"], case["window"]), name)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("direction", ["first", "first_percent"])
def test_the_other_direction_of_the_official_code_spares_no_key_but_the_first(name, direction):
    """Its fault, and why it is no option here: whatever is alike, the first key is spared for all."""
    _, key = drawn(name)
    unit = key / key.norm(dim=-1, keepdim=True)
    cosines = unit @ unit.mT
    cosines.diagonal(dim1=-2, dim2=-1).zero_()
    cosines[..., 0] = 0.0
    expected = TENSORS[f"{name}.rkv.redundancy.{direction}"]
    torch.testing.assert_close(cosines.mean(-2).softmax(-1), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("own", SETS)
def test_the_snapkv_within_r_kv_is_flowcaches_importance(own):
    """Its max-pool leaves ties at the border: all that is strictly above must be kept."""
    name = f"{own}.snapkv_rkv"
    case, (query, key) = CASES[name], drawn(name)
    before, num_best = key.shape[-2] - case["window"], case["budget"] - case["window"]
    select = Joint(mix_lambda=1.0, pool_kernel=case["kernel"])
    score = select.scores(query[:, before:], key[:, :before], before)
    torch.testing.assert_close(score, TENSORS[f"{name}.score"], atol=TOLERANCE, rtol=0)
    border = score.topk(num_best).values[:, -1:]
    for kept, above in zip(TENSORS[f"{name}.kept"].long().tolist(), score > border + TOLERANCE, strict=True):
        assert set(above.nonzero().flatten().tolist()) <= set(kept)


@pytest.mark.parametrize("pooling", ["avgpool", "maxpool"])
@pytest.mark.parametrize("own", SETS)
def test_snapkv_keeps_what_the_official_code_does(own, pooling):
    name = f"{own}.snapkv_official.{pooling}"
    case, (query, key) = CASES[name], drawn(name)
    before, num_best = key.shape[-2] - case["window"], case["budget"] - case["window"]
    received = causal(query, repeated(query, key), case["window"])[:, 0, :, :before].sum(-2)
    score = pooled(received, case["kernel"], "mean" if pooling == "avgpool" else "max")
    if pooling == "avgpool":
        assert_kept(with_window(score, case["budget"], case["window"]), name)
    border = score.topk(num_best).values[:, -1:]
    for kept, above in zip(TENSORS[f"{name}.kept"].long().tolist(), score > border + 1e-6, strict=True):
        assert set(above.nonzero().flatten().tolist()) <= set(kept)


@pytest.mark.parametrize("name", named("press.snapkv"))
def test_snapkv_of_grouped_heads_scores_as_kvpress_does(name):
    case, (query, key) = CASES[name], drawn(name)
    window, before = case["window"], key.shape[-2] - case["window"]
    if case["attention"] == "causal":
        received = causal(query, key, window).sum(-2)
    else:
        received = attention_received(query[:, before:], key)
    score = pooled(received[..., :before] / window, case["kernel"], "mean").mean(-2)
    torch.testing.assert_close(score, TENSORS[f"{name}.score"][:, :before], atol=TOLERANCE, rtol=0)
    assert_kept(with_window(score, case["kept"], window), name)


@pytest.mark.parametrize("name", named("press.observed"))
def test_accumulated_attention_is_kvpress_observed_attention_but_for_its_divisor(name):
    """It divides by the number of later queries, which only a causal mask makes right."""
    case, (query, key) = CASES[name], drawn(name)
    length = key.shape[-2]
    is_causal = case["attention"] == "causal"
    received = causal(query, key, length).sum(-2) if is_causal else attention_received(query, key)
    score = received.mean(-2) / torch.arange(length, 0, -1)
    torch.testing.assert_close(score, TENSORS[f"{name}.score"], atol=TOLERANCE, rtol=0)
    assert_kept(keep_best(score, case["kept"]).indices, name)


@pytest.mark.parametrize("own", SETS)
def test_h2o_keeps_and_carries_what_the_official_code_does(own):
    """All tokens but two frames, then a frame at a time, each seen by its own queries; one set for every query head."""
    query, key = drawn(own)
    key, end = repeated(query, key), 0
    held = torch.empty(len(key), 0, dtype=torch.int64)
    observed = torch.zeros(len(key), 0)
    for name in named(f"{own}.h2o_official"):
        case = CASES[name]
        heavy, recent = case["heavy"], case["recent"]
        start, end = end, end + case["new_tokens"]
        held = torch.cat([held, torch.arange(start, end).expand(len(key), -1)], dim=-1)
        there = key.gather(1, held[..., None].expand(-1, -1, key.shape[-1]))
        observed = torch.cat([observed, torch.zeros(len(key), end - start)], dim=-1)
        select = H2o(recent_share=recent / (heavy + recent), window=None)
        entries = Entries(query[:, start:end], there, there, held, None, 0, FRAME, FRAME, observed)
        observed += select.observe(entries)
        kept = select.select(entries, heavy + recent).indices
        observed, held = observed.gather(1, kept), held.gather(1, kept)
        torch.testing.assert_close(observed, TENSORS[f"{name}.score"], atol=SUMS_TOLERANCE, rtol=0)
        assert torch.equal(held, TENSORS[f"{name}.kept"].long())


@pytest.mark.parametrize("own", SETS)
def test_key_norm_scores_and_keeps_what_kvpress_does(own):
    name, (query, key) = f"{own}.press.knorm", drawn(own)
    position = torch.arange(key.shape[-2]).expand(key.shape[:-1])
    score = KeyNorm().scores(Entries(query, key, key, position, None, 0, FRAME, FRAME))
    torch.testing.assert_close(score, TENSORS[f"{name}.score"], atol=SUMS_TOLERANCE, rtol=0)
    assert_kept(select_keys(query, key, CASES[name]["kept"], KeyNorm(), FRAME, FRAME).indices, name)


@pytest.mark.parametrize("own", SETS)
def test_kvpress_keydiff_is_flowcaches_redundancy_alone(own):
    """A key's mean cosine to all others ranks as its cosine to the mean of their directions does."""
    name, (query, key) = f"{own}.press.keydiff", drawn(own)
    select = Joint(mix_lambda=0.0, query_granularity=1)
    assert_kept(select_keys(query, key, CASES[name]["kept"], select, FRAME, FRAME).indices, name)


@pytest.mark.parametrize("own", SETS)
def test_tova_keeps_what_kvpress_does(own):
    name, (query, key) = f"{own}.press.tova", drawn(own)
    position = torch.arange(key.shape[-2]).expand(key.shape[:-1])
    score = Tova().scores(Entries(query[:, -1:], key, key, position, None, 0, 1, 1))
    torch.testing.assert_close(score[:, :-1], TENSORS[f"{name}.score"][:, :-1], atol=TOLERANCE, rtol=0)
    assert_kept(with_window(score[:, :-1], CASES[name]["kept"], 1), name)  # the last token always stays


@pytest.mark.parametrize("own", SETS)
def test_sink_and_recent_are_the_official_streaming_ones(own):
    """The sink in tokens there: frames of as many."""
    for kind in ("streaming_official", "streaming_rkv", "press.streaming"):
        name, (query, key) = f"{own}.{kind}", drawn(own)
        sink, budget = CASES[name]["sink"], TENSORS[f"{name}.kept"].shape[-1]
        kept = select_keys(query, key, budget, SinkRecent(sink_frames=1), sink, FRAME)
        assert_kept(kept.indices, name)
