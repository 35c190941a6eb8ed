"""The plugin that rounds by shapes finds what it is for, in a process of its own: it changes PyTorch for good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import torch
from torch.nn import functional as F

import tests.rounding

random = torch.Generator().manual_seed(0)
a, b = (torch.randn(shape, generator=random) for shape in ((30, 50), (50, 70)))
query = torch.randn(2, 3, 40, 8, generator=random)
video, kernel = torch.randn(1, 2, 5, 8, 8, generator=random), torch.randn(4, 2, 2, 2, 2, generator=random)
for apply, given, part in (
    (lambda x: x @ b, a, (slice(20),)),
    (lambda x: F.linear(x, b.T, b[0]), a, (slice(20),)),
    (lambda x: F.scaled_dot_product_attention(x, x, x), query, (slice(1),)),
    (lambda x: F.conv3d(x, kernel), torch.cat([video, video + 1]), (slice(1),)),
    (lambda x: F.layer_norm(x, (50,)), a, (slice(20),)),
    (lambda x: x.mean(-1), a, (slice(20),)),
    (lambda x: x.softmax(-1), a, (slice(20),)),
):
    whole, of_part = apply(given), apply(given[part])
    assert torch.equal(whole, apply(given.clone())), "the same operation twice"
    assert not torch.equal(whole[part], of_part), "a part of the batch"
    torch.testing.assert_close(whole[part], of_part, atol=1e-5, rtol=1e-5)
assert torch.equal(torch.eye(50) @ b, b), "what is exact"
assert torch.ones(3, 7).sum(-1).tolist() == [7, 7, 7]
"""


def test_rounding_depends_on_shapes_and_on_nothing_else():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=Path(__file__).parents[1], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
