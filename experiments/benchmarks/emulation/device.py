"""A CUDA device without one: shapes, types, devices and strides are as on a GPU, and nothing is computed there.

    with EmulatedCuda().running() as device:
        model = Magi.from_random(device="cuda:0")
        ...
    device.log.launches_by_row()

Tensors on the host are real, so that all host code runs as it is; those on the device are FakeTensors. What would fail
on a GPU (tensors of two devices in one operator) fails here. What would make the host wait, or copy to the device, is
noted with the line of code that does it.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from eval.flops import PRODUCTS, ToldSections
from eval.peak_memory import PeakBytes
from experiments.benchmarks.emulation.bindings import OperatorsAlone
from experiments.benchmarks.emulation.operators import Kind, Operator, OperatorLog, Place
from experiments.job.paths import ROOT
from flowcache.clock import SectionClock

GIB = 2**30
Read = Callable[[torch.Size, torch.dtype], Tensor]

_aten = torch.ops.aten
_DEVICE = torch.device("cuda:0")
_COPIES = (_aten._to_copy, _aten.copy_)
_ALLOCATIONS = (_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten.new_empty_strided)
_VIEWS = (_aten._unsafe_view, _aten.detach, _aten.alias, _aten.lift_fresh, _aten._reshape_alias)  # by no schema
_INDEXING = (_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_)
# How many numbers they give depends on numbers, for which the host waits.
_DATA_DEPENDENT = (
    _aten.nonzero,
    _aten.masked_select,
    _aten._unique2,
    _aten.unique_dim,
    _aten.unique_consecutive,
    _aten.repeat_interleave,
    _aten.bincount,
    _aten.equal,
)
_RESIZING = (_aten.upsample_nearest2d, _aten._upsample_nearest_exact2d, _aten.upsample_trilinear3d)
_CONVOLUTIONS = (_aten.convolution, _aten._convolution)


def zeros(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """What the host reads if nothing else is asked for: nothing has moved, and all that is tested holds."""
    return torch.full(shape, dtype == torch.bool, dtype=dtype)


class _Call:
    """An operator and what it is given: ``key`` is all that its results' shapes depend on."""

    def __init__(self, func: Any, args: tuple, kwargs: dict) -> None:
        self.func, self.on_device = func, False
        self.tensors: list[Tensor] = []
        parts: list[Any] = [func]
        self._describe(args, parts)
        for name, value in kwargs.items():
            parts.append(name)
            self._describe((value,), parts)
        self.key = tuple(parts)

    def _describe(self, values: Sequence[Any], parts: list[Any]) -> None:
        for value in values:
            if isinstance(value, Tensor):
                is_here = isinstance(value, FakeTensor)
                self.on_device |= is_here
                self.tensors.append(value)
                parts += (is_here, value.shape, value.stride(), value.dtype)
            elif isinstance(value, list | tuple):
                parts.append(len(value))
                self._describe(value, parts)
            else:
                self.on_device |= isinstance(value, torch.device) and value.type == "cuda"
                parts += (type(value), value)


@dataclass(frozen=True)
class _Known:
    """Of an operator that ran: what it did, and shape, strides and type of its results; None of one in place."""

    operator: Operator | None
    results: list[tuple[torch.Size, tuple[int, ...], torch.dtype]] | None
    is_single: bool = True


class EmulatedCuda(TorchDispatchMode):
    """Device "cuda:0" on any machine, for this thread; it needs its number. Models are imported before it is there.

    Args:
        read: gives the numbers that the host reads from the device.
        memory_gib: of the device.

    Attributes:
        log: of what the device was asked to do.
        memory: of its tensors.
        clock: to give to ``sample`` or ``generate``, so that sections are told apart.

    Raises torch's own FakeTensorDeviceMismatchError for an operator on tensors of two devices, in the midst of what
    runs, and NotImplementedError for one whose result's shape only its numbers tell.
    """

    def __init__(self, read: Read = zeros, memory_gib: float = 141.0) -> None:
        super().__init__()
        self.log, self.memory = OperatorLog(), PeakBytes()
        self.clock: SectionClock = ToldSections(self._visit)
        self._read, self._memory_gib, self._fake = read, memory_gib, FakeTensorMode(allow_non_fake_inputs=True)
        self._bindings = OperatorsAlone()
        self._known: dict[tuple, _Known] = {}

    @contextmanager
    def running(self) -> Iterator[EmulatedCuda]:
        """Within it the device is there."""
        torch._C._ensureCUDADeviceGuardSet()  # of a CUDA build without a device
        properties = SimpleNamespace(total_memory=int(self._memory_gib * GIB))
        with (
            _replaced(torch, "Generator", _HostGenerator),
            _replaced(FakeTensor, "tolist", _tolist),
            _replaced(torch.cuda, "get_device_properties", lambda device=None: properties),
            self._bindings,
            self._fake,  # torch looks for no CUDA while it is there
            self,
        ):
            yield self

    def begin_row(self, row: int) -> None:
        """Say which row of the schedule comes; OUTSIDE after the last."""
        self.log.place = Place(self.log.place.section, row)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "aten":  # what a tensor is asked about itself
            return func(*args, **kwargs)
        call = _Call(func, args, kwargs)
        if not call.on_device:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if (known := self._known.get(call.key)) is not None:
            return self._again(known, args[0])
        if func.overloadpacket is _aten.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if _is_composite(func):  # in inference mode operators come whole that are made up of others
            with self:
                return func._op_dk(DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        if _is_view(func):
            with in_kernel_invocation_manager(self._fake):
                views = func(*args, **kwargs)
            return tree_map_only(Tensor, self._wrapped, views)
        with self._bindings:
            return self._operator(call, args, kwargs)

    def _wrapped(self, shape_alone: Tensor) -> FakeTensor:
        return FakeTensor(self._fake, shape_alone, _DEVICE)

    def _again(self, known: _Known, first: Tensor) -> Any:
        """What an operator gives that ran before on tensors of the same shapes."""
        if known.operator is not None:
            self.log.add(known.operator)
        if known.results is None:
            return first
        with unset_fake_temporarily():
            made = [
                self._wrapped(torch.empty_strided(*each[:2], dtype=each[2], device="meta")) for each in known.results
            ]
        self.memory.add(made, set())
        return made[0] if known.is_single else tuple(made)

    def _operator(self, call: _Call, args: tuple, kwargs: dict) -> Any:
        func, packet, tensors = call.func, call.func.overloadpacket, call.tensors
        if packet is _aten._local_scalar_dense:
            with unset_fake_temporarily():
                return self._to_host(torch.Size(()), tensors[0].dtype).item()
        if packet in _COPIES and {_place(tensor) for tensor in tensors} | _target(kwargs) == {"cpu", "cuda"}:
            return self._copy(packet, args, kwargs)
        if packet in _DATA_DEPENDENT:
            self.log.note("read by the host", _line())
        elif packet in _INDEXING:
            args = (args[0], [self._index(each) for each in args[1]], *args[2:])
        given = {id(tensor.untyped_storage()) for tensor in tensors}
        try:
            result = self._resized(*args[:2]) if packet in _RESIZING else func(*args, **kwargs)
        except DynamicOutputShapeException as error:
            raise NotImplementedError(
                f"{_line()}: {func} gives as many numbers as its numbers say, and an emulated device has none"
            ) from error
        made = [result] if isinstance(result, Tensor) else [each for each in result if isinstance(each, Tensor)]
        self.memory.add(made, given)
        operator = None
        if packet not in _ALLOCATIONS:
            operator = _described(func, args, kwargs, tensors, made)
            self.log.add(operator)
        if torch.float64 in {tensor.dtype for tensor in (*tensors, *made)}:
            self.log.note("float64", _line())
        elif result is args[0]:
            self._known[call.key] = _Known(operator, None)
        elif packet not in (*_DATA_DEPENDENT, *_INDEXING) and isinstance(result, Tensor | tuple):
            specs = [(each.shape, each.stride(), each.dtype) for each in made]
            if isinstance(result, Tensor) or len(made) == len(result):
                self._known[call.key] = _Known(operator, specs, isinstance(result, Tensor))
        return result

    @staticmethod
    def _resized(planes: Tensor, size: Sequence[int]) -> Tensor:
        """[N, C, ...] -> [N, C, *size], in one launch; torch's emulation would take it apart."""
        return planes.new_empty((*planes.shape[:2], *size))

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> Tensor:
        """One fused kernel, whichever it is; a mask counts whole."""
        given = [query, key, value] if attn_mask is None else [query, key, value, attn_mask]
        if not all(tensor.is_cuda for tensor in given):
            raise RuntimeError(f"{_line()}: attention takes tensors of {[str(tensor.device) for tensor in given]}")
        out = torch.empty_like(query)
        self.memory.add([out], set())
        flops = 4 * query.numel() * key.shape[-2]
        num_bytes = sum(map(_moved, (*given, out)))
        dtype = _name(query.dtype)
        self.log.add(Operator("attention", "attention", dtype, flops, num_bytes, masked=attn_mask is not None))
        return out

    def _copy(self, packet: Any, args: tuple, kwargs: dict) -> Tensor:
        """Between host and device."""
        source = args[1] if packet is _aten.copy_ else args[0]
        dtype = kwargs.get("dtype") or source.dtype
        if isinstance(source, FakeTensor):
            numbers = self._to_host(source.shape, dtype)
            if packet is _aten._to_copy:
                return numbers
            with unset_fake_temporarily():
                return args[0].copy_(numbers)
        self.log.note("copy to the device", _line())
        if packet is _aten.copy_:
            return args[0]
        return self._made(source, dtype)

    def _made(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        result = torch.empty_strided(like.shape, like.stride(), dtype=dtype, device="cuda:0")
        self.memory.add([result], set())
        return result

    def _to_host(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        self.log.note("read by the host", _line())
        with unset_fake_temporarily():
            return self._read(shape, dtype)

    def _index(self, index: Tensor | None) -> Tensor | None:
        """One from the host is copied to the device; a mask on the device is read, and taken to be true throughout."""
        if index is None:
            return None
        if not isinstance(index, FakeTensor):
            self.log.note("copy to the device", _line())
            if index.dtype == torch.bool and index.ndim == 1:
                with unset_fake_temporarily():
                    index = index.nonzero()[:, 0]
            return self._made(index, index.dtype)
        if index.dtype == torch.bool and index.ndim == 1:
            self.log.note("read by the host", _line())
            return self._made(index, torch.int64)
        return index

    @contextmanager
    def _visit(self, section: str) -> Iterator[None]:
        before = self.log.place.section
        self.log.place = Place(section, self.log.place.row)
        try:
            yield
        finally:
            self.log.place = Place(before, self.log.place.row)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    is_own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _tolist(tensor: Tensor) -> Any:
    """In one read, where torch's own would take one for each number."""
    return tensor.to("cpu").tolist()


class _HostGenerator(torch.Generator):
    """Draws on the host what is asked of the device; a class, for code that asks what a seed is."""

    def __new__(cls, device: torch.device | str = "cpu") -> _HostGenerator:
        return super().__new__(cls, _host_of(device))


def _host_of(device: torch.device | str) -> torch.device | str:
    return "cpu" if torch.device(device).type == "cuda" else device


def _place(tensor: Tensor) -> str:
    return "cuda" if isinstance(tensor, FakeTensor) else tensor.device.type


def _target(kwargs: dict) -> set[str]:
    device = kwargs.get("device")
    return set() if device is None else {torch.device(device).type}


@cache
def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@cache
def _is_view(func: Any) -> bool:
    aliases = [value.alias_info for value in func._schema.returns]
    return func.overloadpacket in _VIEWS or (bool(aliases) and all(a is not None and not a.is_write for a in aliases))


def _described(func: Any, args: tuple, kwargs: dict, tensors: list[Tensor], made: list[Tensor]) -> Operator:
    packet, given = func.overloadpacket, {id(tensor): tensor for tensor in tensors if isinstance(tensor, FakeTensor)}
    kind: Kind = "elementwise"
    if packet in PRODUCTS:
        kind = "convolution" if packet in _CONVOLUTIONS else "product"
    flops = PRODUCTS[packet](*args, **kwargs, out_val=made[0]) if kind != "elementwise" else 0
    written = [tensor for tensor in made if id(tensor) not in given or str(packet).endswith("_")]
    dtype = next((tensor.dtype for tensor in (*given.values(), *made)), torch.uint8)
    num_bytes = sum(map(_moved, given.values())) + sum(map(_moved, written))
    return Operator(str(packet).removeprefix("aten."), kind, _name(dtype), flops, num_bytes)


def _moved(tensor: Tensor) -> int:
    """Bytes of a tensor that are there: a broadcast dimension counts once."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _line() -> str:
    """The innermost line of this repository that is not of the emulation."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        is_own = path.is_relative_to(ROOT) and not path.is_relative_to(sys.prefix)  # .venv lies in the checkout
        if is_own and path.parent != Path(__file__).parent:
            return f"{path.relative_to(ROOT).as_posix()}:{frame.lineno}"
    return "?"
