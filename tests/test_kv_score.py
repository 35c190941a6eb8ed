"""Scores and selection for a compressed cache: the official numbers, and what must hold for any keys and queries."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from experiments.benchmarks.memory import PeakBytes
from flowcache.kv_score import (
    CompressionConfig,
    importance,
    position_weights,
    redundancy,
    select,
    select_keys,
    token_scores,
)
from tests.flowcache_goldens import manifest, tensors

SHAPES = manifest("kv_compressor")
CHUNK, FRAME, CLEAN = SHAPES["chunk_tokens"], SHAPES["frame_tokens"], SHAPES["clean_tokens"]
SCORE_TOLERANCE = 2e-8
UNUSABLE = (math.nan, math.inf, -math.inf, 0.0)
WEIGHTINGS = ("exponential", "polynomial", "upper_convex_polynomial", "gaussian")


def golden(heads: str, name: str) -> Tensor:
    """The golden query, key or value of a head layout as [heads, tokens, E]; keys and values are the clean ones."""
    tensor = tensors("kv_compressor")[f"{heads}.{name}"].transpose(0, 1)
    return tensor if name == "query" else tensor[:, :CLEAN]


def as_sets(indices: Tensor) -> list[set[int]]:
    return [set(head) for head in indices.tolist()]


def take(tensor: Tensor, indices: Tensor) -> Tensor:
    return tensor.gather(-2, indices[..., None].expand(*indices.shape, tensor.shape[-1]))


@pytest.mark.parametrize("heads", ["gqa", "plain"])
@pytest.mark.parametrize("granularity", ["token", "frame", "chunk"])
def test_importance_is_the_official_one(heads, granularity):
    num_queries = CompressionConfig(query_granularity=granularity).num_queries(FRAME, CHUNK)
    assert num_queries == {"token": 50, "frame": 24, "chunk": 72}[granularity]
    query, key = golden(heads, "query")[:, -num_queries:], golden(heads, "key")
    for name, kernel in (("importance_raw", 1), ("importance", SHAPES["pool_kernel"])):
        expected = tensors("kv_compressor")[f"{heads}.{granularity}.{name}"]
        torch.testing.assert_close(importance(query, key, kernel), expected, atol=SCORE_TOLERANCE, rtol=0)


@pytest.mark.parametrize("heads", ["gqa", "plain"])
@pytest.mark.parametrize("form", ["linear", "quadratic"])
def test_redundancy_is_the_official_one(heads, form):
    expected = tensors("kv_compressor")[f"{heads}.redundancy_{form}"]
    torch.testing.assert_close(redundancy(golden(heads, "key")), expected, atol=2e-9, rtol=0)


def official_config(case: dict) -> CompressionConfig:
    names = ("mix_lambda", "query_granularity", "weighting", "power")
    return CompressionConfig(selection=case["strategy"], **{name: case[name] for name in names})


@pytest.mark.parametrize("case", SHAPES["cases"], ids=lambda case: f"{case['name']}.b{case['budget']}")
def test_scores_and_kept_sets_are_the_official_ones(case):
    config = official_config(case)
    query, key = golden(case["heads"], "query"), golden(case["heads"], "key")
    score = token_scores(query[:, -config.num_queries(FRAME, CHUNK) :], key, config, CHUNK)
    expected = tensors("kv_compressor")[case["score"]]
    if config.selection != "token":
        score = score.unflatten(-1, (-1, config.unit_tokens(FRAME, CHUNK))).mean(-1)
    elif config.weighting == "no_weight":
        score = score - score.amin(-1, keepdim=True)  # the official code shifts always, to no effect
    elif config.weighting == "hard_code":
        score, expected = score[:, CHUNK:], expected[:, CHUNK:]  # its 1e6 rounds the first chunk's scores away
    torch.testing.assert_close(score, expected, atol=SCORE_TOLERANCE, rtol=0)

    assert case["boundary_gap"] > 5e-8
    kept = select_keys(query, key, case["budget"], config, FRAME, CHUNK)
    assert torch.equal(kept.indices, tensors("kv_compressor")[f"{case['indices']}_sorted"].long())
    assert kept.unusable.tolist() == [0] * len(key)


@pytest.mark.parametrize("case", manifest("r1kv_skyreels")["cases"], ids=lambda c: f"{c['name']}.b{c['budget']}")
def test_the_official_compressor_of_the_other_model_scores_and_keeps_alike(case):
    config = CompressionConfig(mix_lambda=case["mix_lambda"], kept_order="score")
    query, key = golden(case["heads"], "query"), golden(case["heads"], "key")
    expected = tensors("r1kv_skyreels")
    score = token_scores(query, key, config, CHUNK)
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
    config, expected = CompressionConfig(kept_order=order), tensors("r1kv_skyreels")
    first = select_keys(golden("plain", "query"), golden("plain", "key"), 144, config, FRAME, CHUNK).indices
    assert as_sets(first) == as_sets(expected["rounds.round1.indices"])
    key = torch.cat([take(golden("plain", "key"), first), expected["rounds.key2"].transpose(0, 1)], dim=1)
    second = select_keys(expected["rounds.query2"].transpose(0, 1), key, 144, config, FRAME, CHUNK).indices
    positions = torch.cat([first, torch.arange(CLEAN, CLEAN + CHUNK).expand(3, -1)], dim=1).gather(1, second)
    assert as_sets(positions) == as_sets(expected[f"rounds.round2.original_positions{suffix}"])
    assert torch.equal(positions, positions.sort().values) == (order == "position")


def draw_tensors(draw: st.DrawFn, max_length: int = 40) -> tuple[Tensor, Tensor, int]:
    """Queries [..., H, Q, E], keys [..., G, L, E] of any shape, and G."""
    leading = draw(st.sampled_from([(), (1,), (2, 3)]))
    num_groups, shared, channels = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 9))
    num_queries, length = draw(st.integers(1, 12)), draw(st.integers(1, max_length))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    sharpness = draw(st.sampled_from([0.0, 1.0, 30.0]))
    query = sharpness * torch.randn(*leading, num_groups * shared, num_queries, channels, generator=random)
    key = torch.randn(*leading, num_groups, length, channels, generator=random)
    return query, key + draw(st.sampled_from([0.0, 2.0])), num_groups


inputs = st.composite(draw_tensors)()
fractions = st.floats(0, 1)
configs = st.builds(
    CompressionConfig,
    mix_lambda=st.sampled_from([0.0, 0.07, 0.5, 1.0]),
    pool_kernel=st.sampled_from([1, 3, 7]),
    weighting=st.sampled_from(["no_weight", "hard_code", *WEIGHTINGS]),
    query_granularity=st.just(1),
)


def whole_matrix_importance(query: Tensor, key: Tensor) -> Tensor:
    """Unpooled importance in float64, all at once."""
    queries = query.double().unflatten(-3, (key.shape[-3], -1))
    logits = torch.einsum("...grqe,...gle->...grql", queries, key.double()) / math.sqrt(key.shape[-1])
    return logits.amax(-3).softmax(-1).mean(-2)


def quadratic_redundancy(key: Tensor) -> Tensor:
    """All cosines at once, diagonal zero, in the keys' own precision."""
    unit = key / key.norm(dim=-1, keepdim=True)
    cosines = unit @ unit.transpose(-1, -2)
    cosines.diagonal(dim1=-2, dim2=-1).zero_()
    return cosines.mean(-2).softmax(-1)


@given(inputs, st.integers(1, 5000))
def test_blocked_importance_is_that_of_the_whole_matrix(case, block_bytes):
    query, key, _ = case
    expected = whole_matrix_importance(query, key).float()
    torch.testing.assert_close(importance(query, key, 1), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(importance(query, key, 1, block_bytes=block_bytes), expected, atol=1e-6, rtol=1e-5)


@given(inputs, st.integers(1, 5000))
def test_linear_redundancy_is_the_quadratic_one(case, block_bytes):
    _, key, _ = case
    torch.testing.assert_close(redundancy(key, block_bytes=block_bytes), quadratic_redundancy(key), atol=1e-6, rtol=0)


@given(inputs)
def test_importance_and_redundancy_are_shares(case):
    query, key, _ = case
    for shares in (importance(query, key, 1), redundancy(key)):
        assert (shares >= 0).all()
        torch.testing.assert_close(shares.sum(-1), torch.ones(key.shape[:-2]), atol=1e-5, rtol=0)


@given(inputs, configs)
def test_keys_in_half_precision_are_scored_in_single(case, config):
    query, key, _ = (case[0].bfloat16(), case[1].bfloat16(), case[2])
    scores = token_scores(query, key, config, 5)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, token_scores(query.float(), key.float(), config, 5), atol=1e-6, rtol=1e-5)


@given(inputs, configs, st.integers(1, 50), st.sampled_from(["position", "score"]))
def test_keeps_exactly_the_budget_each_key_once_and_in_order(case, config, budget, order):
    query, key, _ = case
    score = token_scores(query, key, config, 5)
    indices, unusable = select(score, budget, kept_order=order)
    length = key.shape[-2]
    assert indices.shape == (*key.shape[:-2], min(budget, length))
    assert indices.dtype == torch.int64
    assert ((indices >= 0) & (indices < length)).all()
    ascending = indices.sort().values
    assert (ascending[..., 1:] > ascending[..., :-1]).all()
    if order == "position" or budget >= length:
        assert torch.equal(indices, ascending)
    else:
        assert (score.gather(-1, indices).diff() <= 0).all()
    dropped = score.scatter(-1, indices, -math.inf).amax(-1)
    assert (score.gather(-1, indices).amin(-1) >= dropped).all()
    assert not unusable.any()


@given(inputs, st.sampled_from(["token", "frame", "chunk"]), st.integers(0, 20), st.sampled_from(["position", "score"]))
def test_a_budget_of_the_length_or_more_is_the_identity(case, selection, surplus, order):
    query, key, _ = case
    config = CompressionConfig(selection=selection, query_granularity=1, kept_order=order)
    indices, unusable = select_keys(query, key, key.shape[-2] + surplus, config, 3, 6)
    assert torch.equal(take(key, indices), key)
    assert not unusable.any()


@given(inputs, configs, fractions, st.randoms(use_true_random=False))
def test_permuting_heads_permutes_what_they_keep(case, config, fraction, random):
    query, key, num_groups = case
    order = random.sample(range(num_groups), num_groups)
    budget = max(1, round(fraction * key.shape[-2]))
    permuted = query.unflatten(-3, (num_groups, -1))[..., order, :, :, :].flatten(-4, -3)
    kept = select_keys(query, key, budget, config, 1, 1).indices
    assert torch.equal(select_keys(permuted, key[..., order, :, :], budget, config, 1, 1).indices, kept[..., order, :])


@given(inputs, configs)
def test_layers_and_batch_entries_do_not_mix(case, config):
    query, key, _ = case
    together = token_scores(query, key, config, 5).reshape(-1, *key.shape[-3:-1])
    one_by_one = zip(query.reshape(-1, *query.shape[-3:]), key.reshape(-1, *key.shape[-3:]), strict=True)
    for score, (own_query, own_key) in zip(together, one_by_one, strict=True):
        torch.testing.assert_close(token_scores(own_query, own_key, config, 5), score, atol=1e-6, rtol=1e-5)


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_units_are_kept_whole_by_their_mean(unit, num_units, data):
    score = torch.rand(2, unit * num_units, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    kept_units = data.draw(st.integers(1, num_units))
    means = score.unflatten(-1, (-1, unit)).mean(-1)
    for order in ("position", "score"):
        best = means.topk(kept_units).indices
        best = best.sort().values if order == "position" or kept_units == num_units else best
        expected = (best[..., None] * unit + torch.arange(unit)).flatten(-2)
        assert torch.equal(select(score, kept_units * unit, unit, order).indices, expected)


@given(inputs, configs, st.data())
def test_unusable_keys_touch_no_score_and_are_kept_last_and_counted(case, config, data):
    query, key, _ = case
    length = key.shape[-2]
    bad = data.draw(st.lists(st.integers(0, length - 1), min_size=1, unique=True))
    poisons = [data.draw(st.sampled_from(UNUSABLE)) for _ in bad]
    broken, zeroed = key.clone(), key.clone()
    for slot, poison in zip(bad, poisons, strict=True):
        broken[..., slot, :] = poison
        zeroed[..., slot, :] = 0.0
    score = token_scores(query, broken, config, 5)
    assert torch.equal(score, token_scores(query, zeroed, config, 5))  # whatever the poison
    assert torch.equal(score.isneginf(), torch.isin(torch.arange(length), torch.tensor(bad)).expand(score.shape))
    assert not score.isnan().any()

    budget = data.draw(st.integers(1, length))
    indices, unusable = select_keys(query, broken, budget, config, 1, 1)
    usable = length - len(bad)
    assert (unusable == max(0, budget - usable)).all()
    assert (torch.isin(indices, torch.tensor(bad)).sum(-1) == unusable).all()


@given(inputs, st.data())
def test_usable_keys_score_as_if_the_others_were_not_there(case, data):
    query, key, _ = case
    bad = data.draw(st.sets(st.integers(0, key.shape[-2] - 1), max_size=key.shape[-2] - 1))
    rest = [slot for slot in range(key.shape[-2]) if slot not in bad]
    broken = key.clone()
    broken[..., list(bad), :] = math.nan
    for score in (redundancy, lambda keys: importance(query, keys, 1)):
        expected, got = score(key[..., rest, :]), score(broken)[..., rest]
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("value", UNUSABLE)
def test_a_cache_without_any_usable_key_is_kept_in_part_and_reported(value):
    query, key = torch.ones(2, 3, 4), torch.full((2, 9, 4), value)
    indices, unusable = select_keys(query, key, 6, CompressionConfig(query_granularity=3), 3, 3)
    assert all(len(kept) == 6 for kept in as_sets(indices))
    assert unusable.tolist() == [6, 6]
    assert select_keys(query, key, 9, CompressionConfig(), 3, 3).unusable.tolist() == [9, 9]


def test_a_unit_with_an_unusable_key_is_dropped_and_a_nan_query_reported():
    random = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 6, 4, generator=random), torch.randn(2, 12, 4, generator=random)
    key[0, 4, 1] = math.nan
    config = CompressionConfig(selection="frame")
    indices, unusable = select_keys(query, key, 9, config, 3, 6)
    assert as_sets(indices)[0] == set(range(12)) - {3, 4, 5}
    assert unusable.tolist() == [0, 0]
    query[1, 2, 3] = math.nan
    assert select_keys(query, key, 6, config, 3, 6).unusable.tolist() == [0, 6]


def test_hard_code_gives_up_the_first_chunk_first_and_keeps_its_order():
    query, key = golden("gqa", "query"), golden("gqa", "key")
    config = CompressionConfig(weighting="hard_code")
    plain = token_scores(query, key, CompressionConfig(), CHUNK)
    kept = select_keys(query, key, CLEAN - CHUNK + 5, config, FRAME, CHUNK).indices
    assert torch.equal(kept[:, 5:], torch.arange(CHUNK, CLEAN).expand(2, -1))
    assert torch.equal(kept[:, :5], plain[:, :CHUNK].topk(5).indices.sort().values)


@given(st.sampled_from(WEIGHTINGS), st.integers(1, 500), st.floats(0.5, 5))
def test_position_weights_rise_or_fall_within_their_range(weighting, length, power):
    weights = position_weights(weighting, length, power)
    low, high = (0.0, 2.0) if weighting == "upper_convex_polynomial" else (0.1, 1.0)
    assert weights.min() >= low - 1e-6
    assert weights.max() <= high + 1e-6
    assert ((weights.diff() >= 0) if weighting != "gaussian" else (weights.diff() <= 0)).all()
    ends = (high, low) if weighting == "gaussian" else (low, high)
    assert weights[0] == pytest.approx(ends[0], abs=1e-6)
    assert length == 1 or weights[-1] == pytest.approx(ends[1], abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_the_papers_size_extra_memory_stays_below_half_a_gib_and_nothing_waits_for_the_device(dtype):
    """On the meta device, where sizes are real, reading a value is an error, and so is a tensor on the CPU."""
    query = torch.empty(24, 12_150, 128, dtype=dtype, device="meta")
    key = torch.empty(8, 48_600, 128, dtype=dtype, device="meta")
    with PeakBytes() as memory:
        kept = select_keys(query, key, 36_450, CompressionConfig(), 2025, 12_150)
    assert kept.indices.shape == (8, 36_450)
    assert kept.indices.device.type == "meta"
    assert 2**20 < memory.peak < 300 * 2**20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mix_lambda": 1.1}, r"mix_lambda=1.1 must lie between 0 \(redundancy only\) and 1 \(importance only\)"),
        ({"mix_lambda": math.nan}, "mix_lambda=nan must lie between"),
        ({"mix_lambda": "0.5"}, "mix_lambda='0.5' must lie between"),
        ({"pool_kernel": 6}, "pool_kernel=6 must be an odd whole number of at least 1"),
        ({"pool_kernel": 7.0}, "pool_kernel=7.0 must be an odd whole number"),
        ({"power": 0}, "power=0 must be a finite number above 0"),
        ({"power": math.inf}, "power=inf must be a finite number above 0"),
        ({"selection": "block"}, "selection='block' is unknown; choose one of 'token', 'frame', 'chunk'"),
        ({"weighting": "default"}, "weighting='default' is unknown; choose one of 'no_weight', 'hard_code'"),
        ({"kept_order": "time"}, "kept_order='time' is unknown; choose one of 'position', 'score'"),
        ({"query_granularity": "layer"}, "query_granularity='layer' is unknown; choose 'token'"),
        ({"query_granularity": 0}, "query_granularity=0 is unknown; choose .* a whole number of queries of at least 1"),
        ({"query_granularity": True}, "query_granularity=True is unknown"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CompressionConfig(**options)


def test_counts_of_queries_and_units_follow_the_sizes_of_frame_and_chunk():
    def num_queries(granularity: str | int, chunk: int = 72) -> int:
        return CompressionConfig(query_granularity=granularity).num_queries(24, chunk)

    assert [num_queries(g) for g in ("token", "frame", "chunk", 7, 72)] == [50, 24, 72, 7, 72]
    assert num_queries("token", chunk=48) == 48
    with pytest.raises(ValueError, match="query_granularity=73 is more than the 72 queries of a chunk; choose 1 to 72"):
        num_queries(73)
    units = {s: CompressionConfig(selection=s).unit_tokens(24, 72) for s in ("token", "frame", "chunk")}
    assert units == {"token": 1, "frame": 24, "chunk": 72}


def test_tensors_that_do_not_belong_together_are_refused():
    key = torch.ones(2, 5, 4)
    for query in (torch.ones(3, 5, 4), torch.ones(2, 5, 3), torch.ones(1, 2, 5, 4), torch.ones(2, 0, 4)):
        with pytest.raises(ValueError, match="do not belong together: expected"):
            importance(query, key)
    with pytest.raises(ValueError, match="do not belong together: expected"):
        importance(key, key[:, :0])
    with pytest.raises(ValueError, match="pool_kernel=2 must be an odd"):
        importance(key, key, pool_kernel=2)
    with pytest.raises(ValueError, match="query_granularity='frame' needs 6 queries, got 5"):
        select_keys(key, key, 3, CompressionConfig(query_granularity="frame"), 6, 12)


def test_impossible_budgets_are_refused_with_the_nearest_possible():
    score = torch.zeros(1, 12)
    with pytest.raises(ValueError, match=r"a budget of 0 tokens is not a whole number of units of 1 tokens.*is 1$"):
        select(score, 0)
    with pytest.raises(ValueError, match=r"a budget of 8 tokens is not .* of 3 tokens, at least one; the nearest is 9"):
        select(score, 8, unit_tokens=3)
    with pytest.raises(ValueError, match="12 keys are not whole units of 5 tokens; select by 'token' instead"):
        select(score, 5, unit_tokens=5)
