"""Networks that are needed for a moment only: at home in host memory, on the device while they are used."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import nn


class Visits:
    """``with visits: module(...)`` runs a module on a device and leaves nothing there.

    Its weights never change, so that leaving copies nothing back: the parameters are those at home again. Visits may be
    nested; the outermost one counts.

    Args:
        module: in host memory.
        device: that it visits.
    """

    def __init__(self, module: nn.Module, device: torch.device | str) -> None:
        self.device = torch.device(device)
        tensors = [*module.parameters(), *module.buffers()]
        self._home = [(tensor, tensor.data) for tensor in tensors]
        self._depth = 0

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1:
            with torch.inference_mode(False):  # what is made in inference mode cannot become a parameter's content
                for tensor, home in self._home:
                    tensor.data = torch.empty_like(home, device=self.device).copy_(home)

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._depth -= 1
        if self._depth == 0:
            with torch.inference_mode(False):
                for tensor, home in self._home:
                    tensor.data = home
