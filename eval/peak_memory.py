"""Memory that a piece of code takes for tensors, on any device: what it makes and has not yet let go of."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Set
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from eval.eager import EagerDispatchMode


class PeakBytes(EagerDispatchMode):
    """Counts the bytes of tensors made while it is active; ``peak`` is the most alive at once.

    Views and operators in place make nothing. Scratch space inside an operator is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        self.add([leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)], given)
        return result

    def add(self, results: Iterable[Tensor], given: Set[int]) -> None:
        """Count an operator's results. ``given`` are the ids of the storages that it took, which are not made by it."""
        for result in results:
            if id(result.untyped_storage()) not in given and id(result.untyped_storage()) not in self._made:
                self._count(result)

    def _count(self, made: Tensor) -> None:
        storage, size = made.untyped_storage(), made.untyped_storage().nbytes()
        self._made.add(id(storage))
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, id(storage), size)

    def _release(self, storage: int, size: int) -> None:
        self._made.discard(storage)
        self.live -= size
