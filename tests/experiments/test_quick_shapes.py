"""Shapes and types by rules of our own are PyTorch's, and a dry run counts the same with them."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from experiments.job.cli import compose_config
from experiments.job.method import make_method
from experiments.run import dry_run
from experiments.run.quick_shapes import RULES, QuickShapes


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


HALF = torch.bfloat16
CALLS = {
    "linear": lambda: F.linear(empty(2, 5, 8, dtype=HALF), empty(3, 8, dtype=HALF), empty(3, dtype=HALF)),
    "attention": lambda: F.scaled_dot_product_attention(
        empty(1, 4, 6, 8), empty(1, 4, 7, 8), empty(1, 4, 7, 8), attn_mask=empty(1, 1, 1, 7, dtype=torch.bool)
    ),
    "layer_norm": lambda: F.layer_norm(empty(2, 5, 8), (8,), empty(8), empty(8), 1e-6),
    "rms_norm": lambda: F.rms_norm(empty(2, 5, 8, dtype=HALF), (8,), empty(8, dtype=HALF)),
    "silu": lambda: F.silu(empty(2, 5, dtype=HALF)),
    "gelu": lambda: F.gelu(empty(2, 5), approximate="tanh"),
    "tanh": lambda: torch.tanh(empty(2, 5, dtype=HALF)),
    "mul": lambda: empty(2, 1, 5, dtype=HALF) * empty(3, 1),
    "mul by a number": lambda: 2.5 * empty(2, 5, dtype=HALF),
    "whole numbers by a number": lambda: empty(2, 5, dtype=torch.int64) * 0.5,
    "add": lambda: empty(4, 5) + empty(5, dtype=HALF),
    "sub": lambda: empty(4, 5) - empty(1, 5),
    "torch.add": lambda: torch.add(empty(4, 5, dtype=HALF), empty(4, 5), alpha=0.5),
    "addcmul": lambda: torch.addcmul(empty(3, 4, 5), empty(4, 5), empty(3, 1, 5), value=2),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_rule_gives_what_pytorch_gives(call):
    expected = call()
    with QuickShapes():
        found = call()
    assert (found.shape, found.dtype, found.device) == (expected.shape, expected.dtype, expected.device)


def test_every_rule_is_tried(monkeypatch):
    tried = set()
    for function, rule in list(RULES.items()):
        monkeypatch.setitem(RULES, function, lambda *a, f=function, r=rule, **k: tried.add(f) or r(*a, **k))
    with QuickShapes():
        for call in CALLS.values():
            call()
    assert tried == RULES.keys()


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.linear(empty(2, 7), empty(3, 8)),
        lambda: F.scaled_dot_product_attention(empty(1, 4, 6, 8), empty(1, 4, 7, 9), empty(1, 4, 7, 9)),
        lambda: empty(3, 4) * empty(3, 5),
    ],
    ids=["linear", "attention", "mul"],
)
def test_shapes_that_do_not_go_together_are_refused(call):
    with QuickShapes(), pytest.raises((ValueError, RuntimeError)):
        call()


def test_numbers_are_computed_as_ever():
    x, out = torch.tensor([1.0, 2.0]), torch.empty(2)
    with QuickShapes():
        assert torch.equal(x * x, torch.tensor([1.0, 4.0]))
        assert torch.add(x, x, out=out) is out
    assert torch.equal(out, 2 * x)


def test_tensors_given_by_name_count_too():
    x, wide, weight = (torch.empty(shape, device="meta") for shape in ((3, 1), (3, 4), (5, 1)))
    with QuickShapes():
        assert torch.add(x, other=wide).shape == (3, 4)
        assert torch.nn.functional.linear(input=x, weight=weight).shape == (3, 5)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=magi", "method=flowcache_fast", "setting.num_frames=120", "setting.num_steps=8"],
        ["model=magi", "kv=snapkv", "kv.budget=2 chunks", "setting.num_frames=120", "setting.num_steps=8"],
        [
            "model=skyreels",
            "method=every_k",
            "kv=joint",
            "kv/store=int4",
            "setting.num_frames=57",
            "setting.num_steps=6",
        ],
        ["model=wan", "method=every_k"],
    ],
    ids=" ".join,
)
def test_a_dry_run_counts_the_same_as_by_pytorchs_rules(overrides, monkeypatch):
    config = compose_config(overrides)
    quick = dry_run.count(config, make_method(config))
    monkeypatch.setattr(dry_run, "QuickShapes", nullcontext)
    slow = dry_run.count(config, make_method(config))
    assert quick.trace.flops > 0
    for part in ("flops_by_kind", "kv_bytes_by_use", "entries", "work"):
        found, expected = (getattr(counted.trace, part) for counted in (quick, slow))
        assert (found() == expected()) if callable(found) else (found == expected)
    assert quick.paper_flops == slow.paper_flops
