"""FLOPs of what really executes, counted while it runs: the check on the counts from shapes (flowcache.trace).

    with ExecutedFlops() as executed:
        for chunk, latent in sample(generation, trace, executed.clock):
            ...
    check(executed, trace)

Multiply-adds count 2, matrix products, convolutions and attention count, as in the trace. What an operator is for (a
near-clean copy, a refresh) cannot be seen from it; which part of which row it runs in, and how many keys are attended
to, can.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from eval.eager import EagerDispatchMode
from flowcache.clock import SectionClock
from flowcache.trace import Trace

# What scaled_dot_product_attention may run; every one takes query, key and value first and gives the output first.
ATTENTION = (
    torch.ops.aten._scaled_dot_product_attention_math,  # any device
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    torch.ops.aten._scaled_dot_product_flash_attention,  # CUDA
    torch.ops.aten._scaled_dot_product_efficient_attention,
    torch.ops.aten._scaled_dot_product_cudnn_attention,
)
PRODUCTS = {operator: count for operator, count in flop_registry.items() if "attention" not in str(operator)}
_bmm = PRODUCTS[torch.ops.aten.bmm]  # which cannot take the type of the result
PRODUCTS[torch.ops.aten.bmm] = lambda left, right, *out_dtype, out_val: _bmm(left, right, out_val=out_val)


class UnknownAttention(RuntimeError):
    """An operator computes attention and is not known: it would count as nothing."""


class FlopsDisagree(RuntimeError):
    """What was counted while running is not what was counted from shapes."""


@dataclass
class Visit:
    """One stay in a section of the sampler ("transformer", "policy", ...), without the sections within it.

    ``attention_flops`` are by how many keys each query attended to.
    """

    section: str
    gemm_flops: int = 0
    attention_flops: Counter[int] = field(default_factory=Counter)

    @property
    def flops(self) -> int:
        return self.gemm_flops + self.attention_flops.total()


class ExecutedFlops(EagerDispatchMode):
    """Counts every operator that PyTorch dispatches while it is active, on any device.

    Attention counts whole, whatever its mask. Without inference mode the math form of attention reaches it as matrix
    products, and counts as such. Kernels that PyTorch's dispatcher never sees are not counted: ``check`` finds them.

    Attributes:
        visits: in order of time; the first holds what ran outside of any section.
        clock: to give to ``sample`` or ``generate``, so that sections are told apart.

    Raises UnknownAttention, in the midst of what runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.visits = [Visit("")]
        self.clock: SectionClock = ToldSections(self._visit)
        self._open = [self.visits[0]]

    def by_section(self) -> dict[str, Visit]:
        """All visits of each section together."""
        sections: dict[str, Visit] = {}
        for visit in self.visits:
            whole = sections.setdefault(visit.section, Visit(visit.section))
            whole.gemm_flops += visit.gemm_flops
            whole.attention_flops += visit.attention_flops
        return sections

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, operator = kwargs or {}, func.overloadpacket
        if operator in ATTENTION:
            result = func(*args, **kwargs)
            keys, flops = _attention(*args[:3], result[0])
            self._open[-1].attention_flops[keys] += flops
            return result
        if operator in PRODUCTS:
            result = func(*args, **kwargs)
            self._open[-1].gemm_flops += PRODUCTS[operator](*args, **kwargs, out_val=result)
            return result
        with self:  # in inference mode operators come whole that are made up of others
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        if "attention" in str(operator) or "attn" in str(operator):
            raise UnknownAttention(
                f"{operator} computes attention and is not among those counted; choose another kernel "
                "(torch.nn.attention.sdpa_kernel), or add it to ATTENTION in eval/flops.py"
            )
        return func(*args, **kwargs)

    @contextmanager
    def _visit(self, section: str) -> Iterator[None]:
        self.visits.append(Visit(section))
        self._open.append(self.visits[-1])
        try:
            yield
        finally:
            self._open.pop()


class ToldSections(SectionClock):
    """A clock that also says which section runs."""

    def __init__(self, visit: Callable[[str], Any]) -> None:
        super().__init__("cpu")
        self._visit = visit

    @contextmanager
    def __call__(self, section: str) -> Iterator[None]:
        with self._visit(section), super().__call__(section):
            yield


def _attention(query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> tuple[int, int]:
    """Number of keys, and the operations of both products, for shapes [..., length, channels]."""
    keys = key.shape[-2]
    return keys, 2 * prod(out.shape[:-1]) * keys * (query.shape[-1] + value.shape[-1])


# Against the trace.

Parts = dict[int, Counter[str]]  # by row: "products", "attention" and "compression"


def executed_by_row(executed: ExecutedFlops) -> Parts:
    """What the transformer executed in each row; -1 is before the first.

    The sampler enters the transformer once to start and then once a row; compression runs within it.
    """
    rows: Parts = defaultdict(Counter)
    row = -2
    for visit in executed.visits:
        row += visit.section == "transformer"
        if visit.section in ("transformer", "compression"):
            rows[row]["compression" if visit.section == "compression" else "products"] += visit.gemm_flops
            rows[row]["attention"] += visit.attention_flops.total()
    return rows


def counted_by_row(trace: Trace) -> Parts:
    """The same from the trace; captions stand apart, since MAGI-1 makes them before it starts."""
    rows: Parts = defaultdict(Counter)
    for row, work in trace.work:
        part = work.kind if work.kind in ("compression", "caption") else "products"
        rows[row][part] += work.gemm_flops
        rows[row]["attention"] += work.self_attention_flops + work.cross_attention_flops
    return rows


def check(executed: ExecutedFlops, trace: Trace) -> int:
    """Compare a finished run row by row and part by part; returns the number of rows. Raises FlopsDisagree."""
    ran, counted = executed_by_row(executed), counted_by_row(trace)
    captions = counted[-1].pop("caption", 0)
    if ran[-1]["products"] == counted[-1]["products"] + captions:
        counted[-1]["products"] += captions
    different = [
        (row, part, ran[row][part], counted[row][part])
        for row in sorted(ran.keys() | counted.keys())
        for part in ("products", "attention", "compression")
        if ran[row][part] != counted[row][part]
    ]
    if different:
        row, part, was, should = different[0]
        where = f"row {row}" if row >= 0 else "the start"
        raise FlopsDisagree(
            f"in {where} the transformer executed {was} FLOPs of {part} and the trace counts {should} (and "
            f"{len(different) - 1} further differences): the model's flops.py does not count what the model runs, or a "
            "kernel escapes PyTorch's dispatcher"
        )
    return max(ran) + 1
