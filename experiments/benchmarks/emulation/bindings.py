"""What Python's bindings of tensors do, by operators alone: some ask for a CUDA device, which a CPU build has not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode

_aten = torch.ops.aten


class OperatorsAlone(TorchFunctionMode):
    """Within it tensors on a device are made, indexed, set, copied and read by operators alone."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor):
            device = kwargs.pop("device", None)
            made = func(*args, **kwargs)
            return made if device is None else made.to(device)
        if func in _BINDINGS and isinstance(args[0], FakeTensor):
            return _BINDINGS[func](*args, **kwargs)
        return func(*args, **kwargs)


def indexed(tensor: Tensor, index: Any) -> Tensor:
    view, tensors = _view(tensor, index)
    return _aten.index.Tensor(view, tensors) if tensors else view


def set_indexed(tensor: Tensor, index: Any, value: Tensor | float) -> None:
    view, tensors = _view(tensor, index)
    if tensors:
        if not isinstance(value, Tensor):
            value = torch.full((), value, dtype=tensor.dtype, device=tensor.device)
        _aten.index_put_.default(view, tensors, value)
    elif isinstance(value, Tensor):
        _aten.copy_.default(view, value)
    else:
        _aten.fill_.Scalar(view, value)


def _view(tensor: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None]]:
    """By whole numbers, slices, None and Ellipsis; the tensors that remain to index it by, if any."""
    items = list(index) if isinstance(index, tuple) else [index]
    items = [torch.tensor(item) if isinstance(item, list) else item for item in items]
    taken = sum(_dimensions(item) for item in items)
    if not any(item is Ellipsis for item in items):
        items.append(Ellipsis)
    view, dim, tensors = tensor, 0, []
    for item in items:
        if item is Ellipsis:
            dim += tensor.ndim - taken
        elif item is None:
            view, dim = _aten.unsqueeze.default(view, dim), dim + 1
        elif isinstance(item, slice):
            ends = (0 if item.start is None else item.start, sys.maxsize if item.stop is None else item.stop)
            if item != slice(None):
                view = _aten.slice.Tensor(view, dim, *ends, 1 if item.step is None else item.step)
            dim += 1
        elif isinstance(item, Tensor):
            tensors += [None] * (dim - len(tensors)) + [item]
            dim += _dimensions(item)
        else:
            view = _aten.select.int(view, dim, int(item))
    return (_aten.alias.default(tensor) if view is tensor else view), tensors


def _dimensions(item: Any) -> int:
    """That an item of an index takes of a tensor's."""
    if item is None or item is Ellipsis:
        return 0
    return item.ndim if isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8) else 1


_BINDINGS: dict[Callable, Callable] = {
    Tensor.__getitem__: indexed,
    Tensor.__setitem__: set_indexed,
    Tensor.__invert__: _aten.bitwise_not.default,
    Tensor.contiguous: _aten.contiguous.default,
    Tensor.copy_: _aten.copy_.default,
    Tensor.item: _aten._local_scalar_dense.default,
    Tensor.__bool__: lambda tensor: bool(_aten._local_scalar_dense.default(tensor)),
    Tensor.__int__: lambda tensor: int(_aten._local_scalar_dense.default(tensor)),
    Tensor.__index__: lambda tensor: int(_aten._local_scalar_dense.default(tensor)),
    Tensor.__float__: lambda tensor: float(_aten._local_scalar_dense.default(tensor)),
    Tensor.cpu: lambda tensor: tensor.to("cpu"),
    Tensor.numpy: lambda tensor: tensor.to("cpu").numpy(),
}
