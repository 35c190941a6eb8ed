"""Training's arithmetic: matrix products in bfloat16 where the processor has it, everything else in float32."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class _Float32Attention(TorchFunctionMode):
    """PyTorch's attention on CPUs takes longer in bfloat16 than in float32, forwards and back."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return function(*(each.float() for each in args), **(kwargs or {}))


@contextmanager
def mixed_precision() -> Iterator[None]:
    """Within it a forward takes about two thirds of its time, if bfloat16 is any faster here."""
    if not bfloat16_is_faster():
        yield
        return
    with torch.autocast("cpu", torch.bfloat16), _Float32Attention():
        yield


@cache
def bfloat16_is_faster() -> bool:
    """Measured: processors without bfloat16 arithmetic emulate it, and are many times slower."""
    float32, bfloat16 = (_fastest_product_s(dtype) for dtype in (torch.float32, torch.bfloat16))
    return bfloat16 < 0.7 * float32


def _fastest_product_s(dtype: torch.dtype) -> float:
    left, right = torch.ones(2, 512, 512, dtype=dtype)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return min(times)
