"""The frame ring: what is read is the sink and the newest frames, in place, and never another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowcache.kv.policy import KvPolicy
from flowcache.kv.select.joint import Joint
from flowcache.kv.store.bfloat16 import Bfloat16
from flowcache.kv.window import WindowCache

LAYERS, HEADS, CHANNELS, TOKENS = 2, 3, 4, 2


def entries(first: int, num_frames: int, layer: int = 0) -> tuple[Tensor, Tensor]:
    """Keys and values that say which frame and token they are of, [1, G, N, E]."""
    numbers = torch.arange(first * TOKENS, (first + num_frames) * TOKENS, dtype=torch.float32) + 1000 * layer
    key = numbers[None, None, :, None].expand(1, HEADS, -1, CHANNELS)
    return key, -key


def frames_of(tensor: Tensor, layer: int = 0) -> list[int]:
    numbers = (tensor[0, 0, :, 0] - 1000 * layer).tolist()
    assert all(numbers[i] + 1 == numbers[i + 1] for i in range(0, len(numbers), TOKENS))
    return [int(number) // TOKENS for number in numbers[::TOKENS]]


def new_cache(num_frames: int, sink: int = 0, **options) -> WindowCache:
    return WindowCache(LAYERS, HEADS, CHANNELS, TOKENS, num_frames, sink_frames=sink, **options)


def shifted(key: Tensor, num_frames: int) -> Tensor:
    return key + 0.25 * num_frames


@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 5), st.integers(1, 8), st.booleans())
def test_a_window_is_the_sink_and_the_newest_frames_and_is_read_in_place(block, sink, room, num_blocks, alone):
    window = sink + block + room
    cache = new_cache(window, sink)
    buffers = [entry.data_ptr() for entry in (cache._store._keys, cache._store._values)]
    sizes = ([1] if alone else []) + [block] * num_blocks
    for i, size in enumerate(sizes):
        first = sum(sizes[:i])
        end = first + size
        for _ in range(2):  # every step writes its block anew
            for layer in range(LAYERS):
                cache.write(layer, first, *entries(first, size, layer))
                key, value = cache.read(layer, max(sink, end - (window - sink)), end - 1, "own" if sink else None)
                expected = [*range(min(sink, end)), *range(max(sink, end - (window - sink)), end)]
                assert sorted(frames_of(key, layer)) == expected
                assert torch.equal(value, -key)
                assert key.untyped_storage().data_ptr() == buffers[0]
                assert value.untyped_storage().data_ptr() == buffers[1]
        assert cache.num_keys(max(sink, end - (window - sink)), end - 1, "own") == len(expected) * TOKENS
        assert cache.num_tokens == len(expected) * TOKENS
        assert sorted(cache.frames_held) == expected
    assert [entry.data_ptr() for entry in (cache._store._keys, cache._store._values)] == buffers


def test_positions_say_which_frame_is_in_every_slot():
    cache = new_cache(6, 1)
    for first in range(0, 9, 3):
        cache.write(0, first, *entries(first, 3))
    key, _ = cache.read(0, 4, 8, "own")
    assert cache.positions(0).shape == (1, HEADS, 6 * TOKENS)
    assert torch.equal(cache.positions(0)[0, 0].float(), key[0, 0, :, 0])


def test_the_oldest_frames_leave_with_the_first_write_of_new_ones_and_not_before():
    cache = new_cache(6)
    cache.write(0, 0, *entries(0, 3))
    cache.write(0, 3, *entries(3, 3))
    assert sorted(frames_of(cache.read(0, 0, 5)[0])) == [0, 1, 2, 3, 4, 5]
    cache.write(0, 6, *entries(6, 3))
    assert sorted(frames_of(cache.read(0, 3, 8)[0])) == [3, 4, 5, 6, 7, 8]
    with pytest.raises(RuntimeError, match="frames 0 to 5 are not all held: a ring of 6 has seen frame 8"):
        cache.read(0, 0, 5)
    with pytest.raises(RuntimeError, match="frames 1 to 8 are not all held"):
        cache.read(0, 1, 8)
    cache.read(1, 0, 5)  # each layer is at its own frame, and this one has seen none
    cache.clear()
    assert cache.num_tokens == 0


def test_some_frames_of_a_ring_are_gathered_in_one_buffer_for_all_layers():
    cache = new_cache(9, 3, gathered_frames=6)
    for layer in range(LAYERS):
        for first in range(0, 12, 3):
            cache.write(layer, first, *entries(first, 3, layer))
    seen = []
    for layer in range(LAYERS):
        key, value = cache.read(layer, 8, 10, "own")
        assert sorted(frames_of(key, layer)) == [0, 1, 2, 8, 9, 10]
        assert torch.equal(value, -key)
        seen.append((key.data_ptr(), value.data_ptr()))
    assert seen[0] == seen[1]
    assert frames_of(cache.read(0, 6, 8)[0]) == [6, 7, 8]


def test_a_sink_that_is_read_near_stands_right_before_the_first_other_frame_and_stays_as_it_was():
    cache = new_cache(6, 2, gathered_frames=6, later=shifted)
    cache.write(0, 0, *entries(0, 3))
    key, _ = cache.read(0, 2, 2, "near")
    assert torch.equal(key[:, :, :4], entries(0, 2)[0])  # where it belongs, not moved
    cache.write(0, 3, *entries(3, 4))
    for _ in range(2):
        key, value = cache.read(0, 3, 6, "near")
        assert torch.equal(key[:, :, : 2 * TOKENS], entries(0, 2)[0] + 0.25)  # a frame later
        assert torch.equal(value[:, :, : 2 * TOKENS], entries(0, 2)[1])
        assert sorted(frames_of(key[:, :, 2 * TOKENS :])) == [3, 4, 5, 6]
    assert torch.equal(cache.read(0, 3, 6, "own")[0][:, :, : 2 * TOKENS], entries(0, 2)[0])


@pytest.mark.parametrize("renewed", [False, True])
def test_of_a_whole_window_written_at_once_a_kept_sink_leaves_its_first_frames_out(renewed):
    cache = new_cache(6, 2)
    for first in range(0, 12, 3):
        cache.write(0, first, *entries(first, 3))
    if renewed:
        cache.renew_sink(6)
    key, value = (entry + 0.5 for entry in entries(6, 6))
    cache.write(0, 6, key, value)
    held = cache.read(0, 8, 11, "own")[0][0, 0, ::TOKENS, 0] / TOKENS
    sink = [6.25, 7.25] if renewed else [0, 1]
    assert held.tolist() == [*sink, *sorted(held.tolist()[2:], key=held.tolist().index)]
    assert sorted(held.tolist()[2:]) == [8.25, 9.25, 10.25, 11.25]
    cache.write(0, 12, *entries(12, 3))
    held = cache.read(0, 11, 14, "own")[0][0, 0, ::TOKENS, 0] / TOKENS
    assert sorted(held.tolist()) == sorted([*sink, 11.25, 12, 13, 14])


def test_bytes_are_those_allocated_and_never_grow():
    cache = new_cache(6, 1, gathered_frames=6)
    frame = 2 * HEADS * TOKENS * CHANNELS * 4
    assert cache.bytes_allocated == LAYERS * 6 * frame + 6 * frame
    for first in range(0, 60, 3):
        cache.write(0, first, *entries(first, 3))
        assert cache.bytes_used <= cache.bytes_allocated == LAYERS * 6 * frame + 6 * frame


def test_a_store_in_16_bits_serves_a_window():
    cache = new_cache(6, 1, policy=KvPolicy(store=Bfloat16()))
    for first in range(0, 9, 3):
        cache.write(0, first, *entries(first, 3))
    key, _ = cache.read(0, 4, 8, "own")
    assert key.dtype == torch.float32
    assert sorted(frames_of(key)) == [0, 4, 5, 6, 7, 8]
    assert cache.bytes_allocated == new_cache(6).bytes_allocated // 2


def test_a_budget_and_a_sink_without_room_are_refused():
    with pytest.raises(ValueError, match="budget='2 chunks' chooses among all finished chunks, and a window of 6"):
        new_cache(6, policy=KvPolicy(select=Joint(), budget="2 chunks"))
    with pytest.raises(ValueError, match="a window of 3 frames cannot hold a sink of 3 and new frames"):
        new_cache(3, 3)
