"""Where a model is loaded to."""

from __future__ import annotations

import torch


def usable_device(device: torch.device | str) -> torch.device:
    """The device of a name; "cpu" whatever its index, of which there is one.

    Raises ValueError for one that is unknown, not on this machine, or without memory to load weights into ("meta").
    """
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device={str(device)!r} is unknown to torch; choose cpu, cuda or cuda:<index>") from None
    if found.type == "meta":
        raise ValueError("device='meta' holds no weights; choose cpu or cuda, or count without weights: on_meta")
    if found.type == "cpu":
        return torch.device("cpu")
    try:
        torch.empty(1, device=found)
    except Exception as error:  # torch raises several kinds, by device
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"device={str(device)!r} is not usable on this machine ({reason}); choose cpu") from error
    return found
