"""Networks that are needed for a moment only: at home in host memory, on the device while they are used."""

from __future__ import annotations

from threading import Lock
from types import TracebackType

import torch
from torch import nn

# Released networks with their cache, activations and text encoder take up to 50 GiB.
ROOM_GIB = 64
# Of this much at most, memory that a GPU copies from by itself is taken: it cannot be swapped, and takes time to get.
PINNED_GIB = 8


def is_short(device: torch.device) -> bool:
    """Whether a device has too little memory for networks that are needed for a moment only: a GPU of under 64 GiB."""
    return device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory < ROOM_GIB * 2**30


class Visits:
    """``with visits: module(...)`` runs a module on a device and leaves nothing there.

    Its weights never change, so that leaving copies nothing back: the parameters are those at home again. Visits may be
    nested, and overlap in several threads; the first to come and the last to go move the weights. Up to 8 GiB wait in
    pinned memory for a GPU, which copies from there by itself.

    Args:
        module: in host memory.
        device: that it visits.
    """

    def __init__(self, module: nn.Module, device: torch.device | str) -> None:
        self.device = torch.device(device)
        tensors = [*module.parameters(), *module.buffers()]
        if self.device.type == "cuda" and sum(tensor.nbytes for tensor in tensors) <= PINNED_GIB * 2**30:
            for tensor in tensors:
                tensor.data = tensor.data.pin_memory()
        self._home = [(tensor, tensor.data) for tensor in tensors]
        self._depth, self._moving = 0, Lock()

    def __enter__(self) -> None:
        # What is made in inference mode cannot become a parameter's content.
        with self._moving, torch.inference_mode(False):
            if self._depth == 0:
                for tensor, home in self._home:
                    tensor.data = torch.empty_like(home, device=self.device).copy_(home, non_blocking=True)
            self._depth += 1

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with self._moving, torch.inference_mode(False):
            self._depth -= 1
            if self._depth == 0:
                for tensor, home in self._home:
                    tensor.data = home
