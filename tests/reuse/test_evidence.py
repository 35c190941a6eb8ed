"""What a policy sees comes to the host in one read, however many parts it has."""

from __future__ import annotations

import pytest
import torch

from experiments.benchmarks.emulation.device import EmulatedCuda
from flowcache.parallel import ALONE
from flowcache.reuse.evidence import _on_host

SHAPES = [(2, 2), (1, 3), (2, 4)]  # distances, a report, motion


@pytest.mark.parametrize("num_parts", [1, 2, 3])
def test_parts_on_a_device_are_read_once_and_keep_their_shapes(num_parts):
    device = EmulatedCuda()
    with device.running():
        parts = [torch.zeros(shape, device="cuda") for shape in SHAPES[:num_parts]]
        own = torch.ones(3)
        *read, none, same = _on_host(ALONE, *parts, None, own)
        assert [part.device.type for part in read] == ["cpu"] * num_parts
    assert [tuple(part.shape) for part in read] == SHAPES[:num_parts]
    assert none is None
    assert same is own
    assert sum(count for what, count in device.log.incidents.items() if what.event == "read by the host") == 1
