"""What watches operators works on compiled code, and lets it be compiled again afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from eval.flops import ExecutedFlops
from eval.peak_memory import PeakBytes
from experiments.benchmarks.products import Products


@pytest.fixture
def graphs() -> list[int]:
    """Grows by one each time that compiled code runs."""
    return []


@pytest.fixture
def layer(graphs):
    """A compiled linear layer, as blocks are."""

    def backend(module, inputs):
        return lambda *given: graphs.append(1) or module(*given)

    own = nn.Linear(4, 3)
    return torch.compile(own, backend=backend, fullgraph=True)


@pytest.mark.parametrize("watching", [ExecutedFlops, PeakBytes, Products])
@torch.no_grad()
def test_it_sees_the_operators_of_compiled_code(watching, layer, graphs):
    x = torch.ones(2, 4)
    expected: Tensor = layer(x)
    assert len(graphs) == 1
    with watching() as mode:
        assert torch.equal(layer(x), expected)
        if watching is ExecutedFlops:
            assert mode.by_section()[""].flops == 2 * 2 * 4 * 3
        elif watching is PeakBytes:
            assert mode.peak >= 2 * 3 * 4
        else:
            assert len(mode.calls) == 1
    assert len(graphs) == 1  # ran as it was written
    assert torch.equal(layer(x), expected)
    assert len(graphs) == 2
