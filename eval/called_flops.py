"""FLOPs of what a module calls, counted at PyTorch's functions: cheap enough to stay on while the module is timed.

``eval.flops`` counts at the dispatcher, where nothing escapes, and takes a third of a small model's time. This counts
what Python calls, as much (tests hold the two together), for networks in Python of torch's own functions: multiply-adds
count 2; matrix products, convolutions and attention count, attention whole whatever its mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def _linear(out: Tensor, input: Tensor, *_: Any, **__: Any) -> int:
    return 2 * out.numel() * input.shape[-1]


def _add_product(out: Tensor, input: Tensor, batch1: Tensor, *_: Any, **__: Any) -> int:
    return 2 * out.numel() * batch1.shape[-1]


def _convolution(out: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * out.numel() * prod(weight.shape[1:])


def _attention(out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return 2 * prod(out.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1])


COUNTS = {
    F.scaled_dot_product_attention: _attention,
    **dict.fromkeys((torch.addmm, torch.baddbmm), _add_product),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
    **dict.fromkeys((F.linear, torch.matmul, torch.mm, torch.bmm), _linear),
    **dict.fromkeys((Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm), _linear),
}


class CalledFlops(TorchFunctionMode):
    """Counts while it is active.

    Attributes:
        flops: so far.
        calls: of the module that ``counted`` watches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        count = COUNTS.get(func)
        if count is not None:
            self.flops += count(result, *args, **kwargs)
        return result


@contextmanager
def counted(module: torch.nn.Module) -> Iterator[CalledFlops]:
    """Count what the module's forwards call, whoever calls them and whatever hooks diffusers has put on them."""
    counter = CalledFlops()

    def enter(*_: Any) -> None:
        counter.calls += 1
        counter.__enter__()

    def leave(*_: Any) -> None:
        counter.__exit__(None, None, None)

    hooks = module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)
    try:
        yield counter
    finally:
        for hook in hooks:
            hook.remove()
