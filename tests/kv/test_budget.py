"""Budgets: what a text means, the buffer it takes, and what is refused with one that would do."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowcache.kv.budget import Budget, longest_held, parse_budget, plan_budget
from flowcache.kv.cache import KvCache
from flowcache.kv.select.joint import Joint
from flowcache.schedule import Schedule, diffusion_forcing_schedule, staged_schedule, timesteps

FRAME, CHUNK = 4, 12


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("2 chunks", (2.0, "chunks")),
        ("1 chunk", (1.0, "chunks")),
        ("4096 tokens", (4096.0, "tokens")),
        (" 1.5chunks ", (1.5, "chunks")),
        ("64 MiB", (64.0, "MiB")),
        ("0.5 GiB", (0.5, "GiB")),
    ],
)
def test_budgets_are_read(text, meaning):
    assert parse_budget(text) == meaning


@pytest.mark.parametrize(
    "text", ["", "2", "two chunks", "2 blocks", "-1 chunks", "1e3 tokens", "64 MB", 4096, ["1 chunk"]]
)
def test_what_is_no_budget_is_refused_with_examples(text):
    with pytest.raises(ValueError, match=re.escape(f"budget={text!r} is not understood; write '2 chunks', ")):
        parse_budget(text)


def staged(num_chunks: int, prefix_chunks: int = 0, window_size: int = 4) -> Schedule:
    return staged_schedule(num_chunks, timesteps(2 * window_size), window_size, prefix_chunks)


def bytes_of(budget: Budget | None, num_chunks: int = 10) -> int:
    return KvCache(2, 2, 8, CHUNK, num_chunks, device="meta", budget=budget).bytes_allocated


def plan(text: str | None, schedule: Schedule, refreshes: bool = True, device: str = "cpu", **options) -> Budget | None:
    config = Joint(**options)
    measure = lambda budget: bytes_of(budget, schedule.num_chunks)  # noqa: E731
    return plan_budget(text, config, schedule, FRAME, CHUNK, refreshes, measure, device)


def test_the_buffer_holds_what_is_kept_the_window_and_a_chunk_to_be_refreshed():
    for text, kept in (("1 chunk", 12), ("30 tokens", 30), ("2 chunks", 24)):
        assert plan(text, staged(20)) == Budget(kept, kept + 5 * CHUNK, FRAME)
        assert plan(text, staged(20), refreshes=False).capacity == kept + 4 * CHUNK


@pytest.mark.parametrize("refreshes", [True, False])
@pytest.mark.parametrize("text", ["1 chunk", "40 tokens", "16 KiB"])
def test_the_buffer_does_not_grow_with_the_video(text, refreshes):
    plans = [plan(text, staged(num_chunks), refreshes) for num_chunks in (9, 10, 30, 100)]
    assert plans[0] is not None
    assert len(set(plans)) == 1


def test_chunks_that_are_all_active_at_once_need_the_room_of_all_of_them():
    """Windows of five chunks that start long before the first one finishes, as in the paper's setting."""
    schedule = diffusion_forcing_schedule(9, list(range(50, 0, -1)), 5, 5, 1)
    assert plan("1 chunk", schedule).capacity == 5 * CHUNK


def test_given_chunks_are_held_whole_until_the_first_one_starts_after_them():
    assert longest_held(staged(20, prefix_chunks=6), CHUNK, CHUNK, True) == 7 * CHUNK


@pytest.mark.parametrize("text", ["10 chunks", "120 tokens", "10000 tokens", "1000 chunks", "1 GiB", None])
def test_a_budget_as_large_as_the_cache_is_none(text):
    assert plan(text, staged(10)) is None
    assert plan(f"{bytes_of(None)} B", staged(10)) is None


@given(st.integers(0, 40_000), st.sampled_from(["token", "frame", "chunk"]), st.booleans())
def test_bytes_are_a_limit_that_is_used_up(limit, selection, refreshes):
    schedule, whole = staged(10), {"token": 1, "frame": FRAME, "chunk": CHUNK}[selection]

    def taken(kept: int) -> int:
        return bytes_of(Budget(kept, longest_held(schedule, kept, CHUNK, refreshes), FRAME))

    try:
        budget = plan(f"{limit} B", schedule, refreshes, selection=selection)
    except ValueError as error:
        assert limit < taken(whole)
        smallest = re.search("the smallest that would do is '(.*)'", str(error))[1]
        assert plan(smallest, schedule, refreshes, selection=selection).kept >= whole
        return
    if budget is None:
        assert limit >= bytes_of(None)
        return
    assert bytes_of(budget) <= limit < bytes_of(None)
    assert budget.kept % whole == 0
    assert budget.kept + whole > 10 * CHUNK or taken(budget.kept + whole) > limit


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("0 tokens", {}, "the smallest that would do is '1 tokens'"),
        ("0.05 chunks", {}, "'0.05 chunks' is 0 tokens"),
        (
            "3 tokens",
            {"selection": "frame"},
            "Joint keeps a whole number of units of 4 tokens, at least 4; the smallest that would do is '4",
        ),
        ("18 tokens", {"selection": "chunk"}, "the nearest '24 tokens'"),
        ("1 KiB", {}, "too small for the chunks being denoised and 1 tokens of finished ones; the smallest that would"),
        ("1 chunk", {"query_granularity": 13}, "query_granularity=13 is more than the 12 queries of a chunk"),
    ],
)
def test_impossible_budgets_are_refused_with_what_would_do(text, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        plan(text, staged(10), **options)


def test_budgets_beyond_the_device_are_refused(monkeypatch):
    monkeypatch.setattr("flowcache.kv.budget._memory", lambda device: 4096)
    with pytest.raises(ValueError, match=re.escape("budget='1 GiB' takes 1024.00 MiB, and cpu has 4.00 KiB; lower")):
        plan("1 GiB", staged(10))
    with pytest.raises(ValueError, match=r"budget='8 chunks' takes .* KiB, and cpu has 4.00 KiB"):
        plan("8 chunks", staged(10))
    monkeypatch.undo()
    assert plan("8 chunks", staged(10)) is not None
    assert plan("1000000 GiB", staged(10), device="meta") is None


@given(st.integers(1, 12), st.integers(0, 3), st.integers(1, 4), st.integers(1, 60), st.booleans(), st.randoms())
def test_no_reuse_of_a_chunks_later_steps_ever_needs_more_than_the_buffer(
    num_chunks, prefix_chunks, window_size, kept, refreshes, random
):
    """Against a bookkeeping of its own: rows compute at random, but always where a chunk starts."""
    schedule = staged(prefix_chunks + num_chunks, prefix_chunks, window_size)
    capacity = longest_held(schedule, kept, CHUNK, refreshes)
    compressed, whole, awaiting = 0, list(range(prefix_chunks)), []
    for row in schedule.rows:
        whole += [step.chunk for step in row.steps if step.step == 0]
        if row.steps[-1].step == 0 or random.random() < 0.5:
            final = [c for c in whole if c < row.oldest.chunk and c not in awaiting]
            if compressed + CHUNK * len(final) > kept:
                compressed, whole = kept, [c for c in whole if c not in final]
            awaiting = []
        assert compressed + CHUNK * len(whole) <= capacity
        awaiting += row.finished if refreshes else ()
    assert capacity <= CHUNK * schedule.num_chunks


def test_the_devices_own_memory_is_known():
    from flowcache.kv.budget import _memory

    assert _memory(torch.device("cpu")) > 2**28
    assert _memory(torch.device("meta")) is None
