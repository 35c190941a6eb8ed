"""The memory meter of the benchmarks: it must see what is made and let go of, and nothing else."""

from __future__ import annotations

import pytest
import torch

from eval.peak_memory import PeakBytes

KIB = 256  # float32 elements


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_counts_what_is_alive_at_once(device):
    given = torch.ones(KIB, device=device)
    with PeakBytes() as memory:
        first = given * 2
        second = first + 1  # 2 KiB alive
        del first
        third = torch.cat([second, given])  # 1 + 2
        assert memory.peak == 3 * 1024
        del second, third
        again = given.clone()
    assert memory.peak == 3 * 1024
    assert memory.live == 1024
    del again
    assert memory.live == 0


def test_views_and_operators_in_place_make_nothing():
    given = torch.ones(4, KIB // 4)
    with PeakBytes() as memory:
        given.add_(1).view(-1)[5:].mul_(2)
        torch.maximum(given, given, out=given)
    assert memory.peak == 0


def test_results_of_several_tensors_count_each():
    given = torch.rand(KIB)
    with PeakBytes() as memory:
        values, indices = given.topk(KIB // 2)
    assert memory.peak == values.nbytes + indices.nbytes
