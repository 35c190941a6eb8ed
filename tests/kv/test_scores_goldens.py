"""Scores and kept keys of the official compressors (goldens/flowcache: kv_compressor, r1kv_skyreels)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowcache.kv.select.joint import Joint
from flowcache.kv.select.scores import importance, redundancy
from tests.golden_files import manifest, tensors
from tests.methods import select_keys

SHAPES, SKYREELS = manifest("flowcache/kv_compressor"), manifest("flowcache/r1kv_skyreels")
CHUNK, FRAME, CLEAN = SHAPES["chunk_tokens"], SHAPES["frame_tokens"], SHAPES["clean_tokens"]
SCORE_TOLERANCE = 2e-8


def golden(heads: str, name: str) -> Tensor:
    """The golden query, key or value of a head layout as [heads, tokens, E]; keys and values are the clean ones."""
    tensor = tensors("flowcache/kv_compressor")[f"{heads}.{name}"].transpose(0, 1)
    return tensor if name == "query" else tensor[:, :CLEAN]


def as_sets(indices: Tensor) -> list[set[int]]:
    return [set(head) for head in indices.tolist()]


def take(tensor: Tensor, indices: Tensor) -> Tensor:
    return tensor.gather(-2, indices[..., None].expand(*indices.shape, tensor.shape[-1]))


@pytest.mark.parametrize("heads", ["gqa", "plain"])
@pytest.mark.parametrize("granularity", ["token", "frame", "chunk"])
def test_importance_is_the_official_one(heads, granularity):
    num_queries = Joint(query_granularity=granularity).num_queries(FRAME, CHUNK)
    assert num_queries == {"token": 50, "frame": 24, "chunk": 72}[granularity]
    query, key = golden(heads, "query")[:, -num_queries:], golden(heads, "key")
    for name, kernel in (("importance_raw", 1), ("importance", SHAPES["pool_kernel"])):
        expected = tensors("flowcache/kv_compressor")[f"{heads}.{granularity}.{name}"]
        torch.testing.assert_close(importance(query, key, kernel), expected, atol=SCORE_TOLERANCE, rtol=0)


@pytest.mark.parametrize("heads", ["gqa", "plain"])
@pytest.mark.parametrize("form", ["linear", "quadratic"])
def test_redundancy_is_the_official_one(heads, form):
    expected = tensors("flowcache/kv_compressor")[f"{heads}.redundancy_{form}"]
    torch.testing.assert_close(redundancy(golden(heads, "key")), expected, atol=2e-9, rtol=0)


def official_config(case: dict) -> Joint:
    names = ("mix_lambda", "query_granularity", "weighting", "power")
    return Joint(selection=case["strategy"], **{name: case[name] for name in names})


@pytest.mark.parametrize("case", SHAPES["cases"], ids=lambda case: f"{case['name']}.b{case['budget']}")
def test_scores_and_kept_sets_are_the_official_ones(case):
    config = official_config(case)
    query, key = golden(case["heads"], "query"), golden(case["heads"], "key")
    score = config.scores(query[:, -config.num_queries(FRAME, CHUNK) :], key, CHUNK)
    expected = tensors("flowcache/kv_compressor")[case["score"]]
    if config.selection != "token":
        score = score.unflatten(-1, (-1, config.unit_tokens(FRAME, CHUNK))).mean(-1)
    elif config.weighting == "no_weight":
        score = score - score.amin(-1, keepdim=True)  # the official code shifts always, to no effect
    elif config.weighting == "hard_code":
        score, expected = score[:, CHUNK:], expected[:, CHUNK:]  # its 1e6 rounds the first chunk's scores away
    torch.testing.assert_close(score, expected, atol=SCORE_TOLERANCE, rtol=0)

    assert case["boundary_gap"] > 5e-8
    kept = select_keys(query, key, case["budget"], config, FRAME, CHUNK)
    assert torch.equal(kept.indices, tensors("flowcache/kv_compressor")[f"{case['indices']}_sorted"].long())
    assert kept.unusable.tolist() == [0] * len(key)


@pytest.mark.parametrize("case", SKYREELS["cases"], ids=lambda case: f"{case['name']}.b{case['budget']}")
def test_the_official_compressor_of_the_other_model_scores_and_keeps_alike(case):
    config = Joint(mix_lambda=case["mix_lambda"], kept_order="score")
    query, key = golden(case["heads"], "query"), golden(case["heads"], "key")
    expected = tensors("flowcache/r1kv_skyreels")
    score = config.scores(query, key, CHUNK)
    torch.testing.assert_close(score, expected[case["score"]], atol=SCORE_TOLERANCE, rtol=0)
    kept = select_keys(query, key, case["budget"], config, FRAME, CHUNK).indices
    assert as_sets(kept) == as_sets(expected[case["indices"]])
    standing = expected[case["score"]].gather(-1, kept)
    assert (standing[:, :-1] >= standing[:, 1:] - SCORE_TOLERANCE).all()  # the official scores, best first
    in_official_order = f"{case['name']}.b{case['budget']}.key"
    if in_official_order in expected:
        indices = expected[case["indices"]].long()
        assert torch.equal(take(key, indices).transpose(0, 1), expected[in_official_order])


@pytest.mark.parametrize(("order", "suffix"), [("score", ""), ("position", "_if_resorted")])
def test_the_order_of_the_kept_keys_decides_what_the_next_round_pools(order, suffix):
    """Two rounds: the keys kept of 216 and a new chunk of 72 compete for 144 places once more."""
    config, expected = Joint(kept_order=order), tensors("flowcache/r1kv_skyreels")
    first = select_keys(golden("plain", "query"), golden("plain", "key"), 144, config, FRAME, CHUNK).indices
    assert as_sets(first) == as_sets(expected["rounds.round1.indices"])
    key = torch.cat([take(golden("plain", "key"), first), expected["rounds.key2"].transpose(0, 1)], dim=1)
    second = select_keys(expected["rounds.query2"].transpose(0, 1), key, 144, config, FRAME, CHUNK).indices
    positions = torch.cat([first, torch.arange(CLEAN, CLEAN + CHUNK).expand(3, -1)], dim=1).gather(1, second)
    assert as_sets(positions) == as_sets(expected[f"rounds.round2.original_positions{suffix}"])
    assert torch.equal(positions, positions.sort().values) == (order == "position")


def test_rounds_of_a_running_cache_keep_what_the_official_one_keeps():
    """Two rounds in two layers, kept keys in score order; each round the oldest chunks compete for one chunk's room."""
    given, stored = manifest("flowcache/kv_orchestration"), tensors("flowcache/kv_orchestration")
    config = Joint(query_granularity=given["query_granularity"], kept_order="score")
    layers = range(given["layers"])

    def chunk(index: int) -> Tensor:
        """Keys and values side by side, [layers, heads, tokens, 2E]."""
        return torch.stack([stored[f"chunk{index}.layer{layer}.kv"] for layer in layers]).transpose(1, 2)

    held = chunk(0)
    for index, round_ in enumerate(given["rounds"]):
        clean = torch.cat([held, chunk(round_["clean"][-1])], dim=2)
        query = torch.stack([stored[f"round{index}.layer{layer}.query"] for layer in layers]).transpose(1, 2)
        key = clean[..., : clean.shape[-1] // 2]
        kept = select_keys(query, key, round_["budget_tokens"], config, FRAME, CHUNK).indices
        for layer in layers:
            assert as_sets(kept[layer]) == as_sets(stored[f"round{index}.layer{layer}.indices"])
        held = take(clean, kept)
    buffer = stored[f"round{len(given['rounds']) - 1}.layer0.memory_after"].transpose(0, 1)
    for ours, official in zip(held[0], buffer[:, : held.shape[2]], strict=True):
        assert sorted(ours.tolist()) == sorted(official.tolist())


def test_hard_code_gives_up_the_first_chunk_first_and_keeps_its_order():
    query, key = golden("gqa", "query"), golden("gqa", "key")
    config = Joint(weighting="hard_code")
    plain = Joint().scores(query, key, CHUNK)
    kept = select_keys(query, key, CLEAN - CHUNK + 5, config, FRAME, CHUNK).indices
    assert torch.equal(kept[:, 5:], torch.arange(CHUNK, CLEAN).expand(2, -1))
    assert torch.equal(kept[:, :5], plain[:, :CHUNK].topk(5).indices.sort().values)
