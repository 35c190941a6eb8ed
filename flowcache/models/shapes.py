"""A network's shapes alone, of one that is loaded."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

from flowcache.models.offload import Visits

Module = TypeVar("Module", bound=nn.Module)


def shapes_of(module: Module) -> Module:
    """The same network on device "meta", without its weights and wherever they are: nothing of them is copied."""
    stands_for: dict[int, object] = {}
    for parameter in module.parameters():
        stands_for[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    for buffer in module.buffers():
        stands_for[id(buffer)] = torch.empty_like(buffer, device="meta")
    for part in module.modules():
        stands_for |= {id(value): nullcontext() for value in vars(part).values() if isinstance(value, Visits)}
    return deepcopy(module, stands_for)
