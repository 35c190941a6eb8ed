"""A pytest plugin (``-p tests.rounding``): kernels that round by the shapes and strides of what they are given.

On one machine a kernel gives the same bits for a part of a batch, or for keys in another buffer; on the next it does
not. Here it never does: the last bit of each number depends on its place and on the shapes and strides of the inputs.
The same operation on the same shapes gives the same bits still, and what float32 holds exactly stays exact. So a test
that asserts more than that fails here, whatever the machine.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

SUMS = ("mm", "addmm", "_addmm_activation", "bmm", "baddbmm", "addmv", "dot", "sum.dim_IntList", "mean.dim")
OTHERS = ("convolution", "_scaled_dot_product_flash_attention_for_cpu", "_softmax", "native_layer_norm")
OTHERS += ("native_group_norm", "linalg_vector_norm", "var_mean.correction")
ROUNDED = (torch.float32, torch.bfloat16)

# Held as long as the process: its kernels go with it.
LIBRARY = torch.library.Library("aten", "IMPL")


def layout(argument: Any) -> Any:
    """All of an argument that a kernel may be chosen by: no values of tensors."""
    if isinstance(argument, Tensor):
        return tuple(argument.shape), argument.stride(), str(argument.dtype)
    if isinstance(argument, list | tuple):
        return [layout(entry) for entry in argument]
    return argument


@lru_cache(maxsize=512)
def factors(seed: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """1, or a last bit more or less, by place."""
    random = torch.Generator().manual_seed(seed)
    return 1 + torch.finfo(dtype).eps * torch.randint(-1, 2, shape, generator=random).to(dtype)


def rounding(name: str, kernel: Any) -> Callable[..., Any]:
    """The kernel, with the last bits of its first result changed."""

    def run(keys: Any, *arguments: Any, **options: Any) -> Any:
        results = kernel.call_boxed(keys, *arguments, **options)
        result = results[0] if isinstance(results, tuple) else results
        if result.dtype not in ROUNDED:
            return results
        seed = zlib.crc32(repr((name, layout(arguments), layout(sorted(options.items())))).encode())
        rounded = result * factors(seed, result.shape, result.dtype)
        if name in SUMS:
            doubles = [a.double() if isinstance(a, Tensor) else a for a in arguments]
            exact = kernel.call_boxed(keys, *doubles, **options)
            rounded = torch.where(exact == result, result, rounded)
        return (rounded, *results[1:]) if isinstance(results, tuple) else rounded

    return run


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Warning only once for all operators")
    for operator in SUMS + OTHERS:
        own = rounding(operator, torch.library.get_kernel(f"aten::{operator}", "CPU"))
        LIBRARY.impl(operator, own, "CPU", with_keyset=True)
