"""A network's arithmetic on device "meta" by rules of its own: PyTorch's are Python, and most of a dry run's time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def _like(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x.new_empty(x.shape)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"a projection of {weight.shape[-1]} channels was given {x.shape[-1]}")
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise ValueError(f"attention was given {query.shape}, {key.shape} and {value.shape}")
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def _elementwise(first: Tensor, *others: Tensor | float, **_: Any) -> Tensor:
    shape, dtype = first.shape, first.dtype
    for other in others:
        dtype = torch.result_type(first, other)
        if isinstance(other, Tensor) and other.shape != shape:
            shape = torch.broadcast_shapes(shape, other.shape)
    return first.new_empty(shape, dtype=dtype)


NORMS = (F.layer_norm, F.rms_norm)
ACTIVATIONS = (F.silu, F.gelu, torch.tanh)
ELEMENTWISE = (Tensor.mul, Tensor.add, Tensor.sub, torch.add, torch.addcmul)
RULES: dict[Any, Callable[..., Tensor]] = {
    F.linear: _linear,
    F.scaled_dot_product_attention: _attention,
    **dict.fromkeys((*NORMS, *ACTIVATIONS), _like),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
}


BY_NAME = {"input", "other", "out"}  # tensors that rules do not look for among named arguments


class QuickShapes(TorchFunctionMode):
    """Within it, norms, projections, attention and sums on device "meta" give a contiguous tensor of the shape and type
    that they would give. What lies in memory between them is not what the real kernels take: see ``eval.peak_bytes``.
    Raises ValueError, or what PyTorch raises, for shapes that do not go together."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        rule, given = RULES.get(func), kwargs or {}
        if rule is None or BY_NAME & given.keys() or not isinstance(args[0], Tensor):
            return func(*args, **given)
        if all(entry.is_meta for entry in args if isinstance(entry, Tensor)):
            return rule(*args, **given)
        return func(*args, **given)
