"""What callers give a model, of numpy or of torch: numbers and first frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Frames = Tensor | NDArray[np.uint8]


def plain(value: Any) -> Any:
    """A number of numpy's as Python's own, an array as a list, and what a tuple or a list holds; all else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value


def given_frames(image: Frames | None, prefix_video: Frames | None, height: int, width: int) -> Tensor | None:
    """What a video begins with, uint8 [F, height, width, 3]; None where nothing is given.

    Args:
        image: uint8 [height, width, 3], of numpy or torch, or of Pillow.
        prefix_video: uint8 [F, height, width, 3].

    Raises ValueError for both at once, and for another shape or type.
    """
    if image is not None and prefix_video is not None:
        raise ValueError("give an image or a prefix video, not both")
    if hasattr(image, "convert"):  # of Pillow
        image = np.array(image.convert("RGB"))
    if image is not None:
        return _checked("image", image, (height, width, 3))[None]
    return None if prefix_video is None else _checked("prefix_video", prefix_video, ("F", height, width, 3))


def _checked(name: str, frames: Frames, expected: tuple[int | str, ...]) -> Tensor:
    shape, dtype = tuple(getattr(frames, "shape", ())), str(getattr(frames, "dtype", type(frames).__name__))
    fits = len(shape) == len(expected) and shape[-3:] == expected[-3:]
    if not isinstance(frames, (Tensor, np.ndarray)) or dtype.removeprefix("torch.") != "uint8" or not fits:
        wanted = ", ".join(map(str, expected))
        raise ValueError(
            f"{name} must be uint8 [{wanted}], of torch or numpy (resize it first), got "
            f"{dtype.removeprefix('torch.')} {list(shape)}"
        )
    # A copy of numpy's: torch takes none that is read-only or, like a mirrored one, counts backwards.
    return torch.from_numpy(np.array(frames, order="C")) if isinstance(frames, np.ndarray) else frames
