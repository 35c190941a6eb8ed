"""Watching the operators of code that may be compiled."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class EagerDispatchMode(TorchDispatchMode):
    """A dispatch mode within which compiled functions run as they were written: compiled code shows no operators, and
    refuses to run under a mode."""

    def __init__(self) -> None:
        super().__init__()
        self._stances: list[Any] = []  # one for every time that it was entered: modes enter themselves again

    def __enter__(self) -> Self:
        self._stances.append(torch.compiler.set_stance("force_eager"))
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._stances.pop().__exit__(*raised)
