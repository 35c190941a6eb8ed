"""Scores and selection for a compressed cache: what must hold for any keys and queries, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from eval.peak_memory import PeakBytes
from flowcache.kv.select import scores
from flowcache.kv.select.base import keep_best
from flowcache.kv.select.joint import Joint
from flowcache.kv.select.scores import importance, position_weights, redundancy
from tests.methods import select_keys

UNUSABLE = (math.nan, math.inf, -math.inf, 0.0)
WEIGHTINGS = ("exponential", "polynomial", "upper_convex_polynomial", "gaussian")


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
    Joint,
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
    scores = config.scores(query, key, 5)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, config.scores(query.float(), key.float(), 5), atol=1e-6, rtol=1e-5)


def test_products_of_16_bits_that_add_up_in_float32_keep_the_same_keys(monkeypatch):
    """As tensor cores do it: exact products, sums in another order."""
    random, bmm, seen = torch.Generator().manual_seed(0), torch.bmm, []
    query, key = (torch.randn(shape, generator=random).bfloat16() for shape in ((6, 300, 32), (2, 4000, 32)))
    expected = select_keys(query, key, 3000, Joint(mix_lambda=0.5), 50, 300).indices

    def product(left: Tensor, right: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        if out_dtype is None:
            return bmm(left, right)
        seen.append((left.dtype, right.dtype))
        return bmm(left.double(), right.double()).to(out_dtype)

    monkeypatch.setattr(torch, "bmm", product)
    monkeypatch.setattr(scores, "_multiplies_into_float32", lambda keys: keys.dtype == torch.bfloat16)
    kept = select_keys(query, key, 3000, Joint(mix_lambda=0.5), 50, 300).indices
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    for ours, theirs in zip(kept.tolist(), expected.tolist(), strict=True):
        assert len({*ours} & {*theirs}) >= 0.999 * 3000


@given(inputs, configs, st.integers(1, 50), st.sampled_from(["position", "score"]))
def test_keeps_exactly_the_budget_each_key_once_and_in_order(case, config, budget, order):
    query, key, _ = case
    score = config.scores(query, key, 5)
    indices, unusable, *_ = keep_best(score, budget, kept_order=order)
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
    config = Joint(selection=selection, query_granularity=1, kept_order=order)
    indices, unusable, *_ = select_keys(query, key, key.shape[-2] + surplus, config, 3, 6)
    assert torch.equal(indices, torch.arange(key.shape[-2]).expand(key.shape[:-1]))
    assert not unusable.any()


@given(inputs, configs, fractions, st.randoms(use_true_random=False))
def test_permuting_heads_permutes_what_they_keep(case, config, fraction, random):
    query, key, num_groups = case
    order = random.sample(range(num_groups), num_groups)
    budget = max(1, round(fraction * key.shape[-2]))
    permuted = query.unflatten(-3, (num_groups, -1))[..., order, :, :, :].flatten(-4, -3)
    score, moved = config.scores(query, key, 1), config.scores(permuted, key[..., order, :, :], 1)
    torch.testing.assert_close(moved, score[..., order, :], atol=1e-6, rtol=1e-5)  # ties may fall either way
    assert torch.equal(keep_best(score[..., order, :], budget).indices, keep_best(score, budget).indices[..., order, :])


@given(inputs, configs)
def test_layers_and_batch_entries_do_not_mix(case, config):
    query, key, _ = case
    together = config.scores(query, key, 5).reshape(-1, *key.shape[-3:-1])
    one_by_one = zip(query.reshape(-1, *query.shape[-3:]), key.reshape(-1, *key.shape[-3:]), strict=True)
    for score, (own_query, own_key) in zip(together, one_by_one, strict=True):
        torch.testing.assert_close(config.scores(own_query, own_key, 5), score, atol=1e-6, rtol=1e-5)


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_units_are_kept_whole_by_their_mean(unit, num_units, data):
    score = torch.rand(2, unit * num_units, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    kept_units = data.draw(st.integers(1, num_units))
    means = score.unflatten(-1, (-1, unit)).mean(-1)
    for order in ("position", "score"):
        best = means.topk(kept_units).indices
        best = best.sort().values if order == "position" or kept_units == num_units else best
        expected = (best[..., None] * unit + torch.arange(unit)).flatten(-2)
        assert torch.equal(keep_best(score, kept_units * unit, unit, order).indices, expected)


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
    score = config.scores(query, broken, 5)
    assert torch.equal(score, config.scores(query, zeroed, 5))  # whatever the poison
    assert torch.equal(score.isneginf(), torch.isin(torch.arange(length), torch.tensor(bad)).expand(score.shape))
    assert not score.isnan().any()
    if config.weighting in WEIGHTINGS and len(bad) < length:  # shifted by the lowest usable score
        assert (score.masked_fill(score.isneginf(), math.inf).amin(-1) == 0).all()

    budget = data.draw(st.integers(1, length))
    indices, unusable, *_ = select_keys(query, broken, budget, config, 1, 1)
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
    indices, unusable, *_ = select_keys(query, key, 6, Joint(query_granularity=3), 3, 3)
    assert all(len(set(kept)) == 6 for kept in indices.tolist())
    assert unusable.tolist() == [6, 6]
    assert select_keys(query, key, 9, Joint(), 3, 3).unusable.tolist() == [9, 9]


def test_a_unit_with_an_unusable_key_is_dropped_and_a_nan_query_reported():
    random = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 6, 4, generator=random), torch.randn(2, 12, 4, generator=random)
    key[0, 4, 1] = math.nan
    config = Joint(selection="frame")
    indices, unusable, *_ = select_keys(query, key, 9, config, 3, 6)
    assert indices[0].tolist() == [0, 1, 2, 6, 7, 8, 9, 10, 11]
    assert unusable.tolist() == [0, 0]
    query[1, 2, 3] = math.nan
    assert select_keys(query, key, 6, config, 3, 6).unusable.tolist() == [0, 6]


@pytest.mark.parametrize("order", ["position", "score"])
def test_nan_scores_are_selected_last_and_counted(order):
    score = torch.tensor([[0.0, math.nan, -1.0, math.nan, 2.0]])
    for budget, expected in ((1, {4}), (3, {0, 2, 4}), (4, {0, 2, 4})):
        indices, unusable, *_ = keep_best(score, budget, kept_order=order)
        assert expected <= set(indices[0].tolist())
        assert unusable.tolist() == [budget - len(expected)]


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
        kept = select_keys(query, key, 36_450, Joint(), 2025, 12_150)
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
        ({"selection": "block"}, "selection='block' is unknown; choose 'token', 'frame' or 'chunk'"),
        ({"weighting": "default"}, "weighting='default' is unknown; choose 'no_weight', 'hard_code'"),
        ({"kept_order": "time"}, "kept_order='time' is unknown; choose 'position' or 'score'"),
        ({"timing": "late"}, "timing='late' is unknown; choose 'sound' or 'published'"),
        ({"query_granularity": "layer"}, "query_granularity='layer' is unknown; choose 'token'"),
        ({"query_granularity": 0}, "query_granularity=0 is unknown; choose .* a whole number of queries of at least 1"),
        ({"query_granularity": True}, "query_granularity=True is unknown"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Joint(**options)


def test_counts_of_queries_and_units_follow_the_sizes_of_frame_and_chunk():
    def num_queries(granularity: str | int, chunk: int = 72) -> int:
        return Joint(query_granularity=granularity).num_queries(24, chunk)

    assert [num_queries(g) for g in ("token", "frame", "chunk", 7, 72)] == [50, 24, 72, 7, 72]
    assert num_queries("token", chunk=48) == 48
    with pytest.raises(ValueError, match="query_granularity=73 is more than the 72 queries of a chunk; choose 1 to 72"):
        num_queries(73)
    units = {s: Joint(selection=s).unit_tokens(24, 72) for s in ("token", "frame", "chunk")}
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
        select_keys(key, key, 3, Joint(query_granularity="frame"), 6, 12)


def test_impossible_budgets_are_refused_with_the_nearest_possible():
    score = torch.zeros(1, 12)
    with pytest.raises(ValueError, match=r"a budget of 0 tokens is not a whole number of units of 1 tokens.*is 1$"):
        keep_best(score, 0)
    with pytest.raises(ValueError, match=r"a budget of 8 tokens is not .* of 3 tokens, at least one; the nearest is 9"):
        keep_best(score, 8, unit_tokens=3)
    with pytest.raises(ValueError, match="12 keys are not whole units of 5 tokens; select by 'token' instead"):
        keep_best(score, 5, unit_tokens=5)


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_for_it_and_scores_are_those_of_the_cpu():
    random = torch.Generator().manual_seed(0)
    query, key = torch.randn(6, 40, 64, generator=random), torch.randn(2, 600, 64, generator=random)
    config = Joint(weighting="exponential", query_granularity=40)
    on_gpu = query.cuda(), key.cuda()
    select_keys(*on_gpu, 300, config, 10, 40)  # what is set up on first use may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        score, kept = config.scores(*on_gpu, 40), select_keys(*on_gpu, 300, config, 10, 40)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(score.cpu(), config.scores(query, key, 40), atol=1e-6, rtol=1e-4)
    assert kept.indices.is_cuda
    assert kept.unusable.is_cuda
