"""Random weights, made where they are used: for measuring speed without a checkpoint."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def fill_random(module: nn.Module, device: torch.device | str, seed: int) -> None:
    """Give a module on device "meta" random weights on ``device``, each parameter in the type it has.

    Matrices and tables keep the variance of what goes through them, vectors are ones where they scale (norms) and zeros
    where they shift, so that no depth overflows. Buffers have to be filled by their owner. The memory taken is the
    weights' own; equal seeds give equal weights on devices of one kind.
    """
    random = torch.Generator(device).manual_seed(seed)
    module.to_empty(device=device)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            fan_in = max(1, parameter[0].numel()) if len(parameter) > 1 else parameter.shape[-1]
            parameter.normal_(0.0, fan_in**-0.5, generator=random)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    module.eval().requires_grad_(False)
