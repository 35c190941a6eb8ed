"""Frames as they leave ``generate``, uint8 [F, H, W, 3], as images of Pillow and as a file to look at."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

_EXTRA = "install it with `pip install flowcache[video]`"


def to_pil(frames: Tensor) -> list[Image]:
    """uint8 [F, H, W, 3] -> F images. Raises ImportError where Pillow is missing."""
    _check(frames)
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"images are Pillow's, which is missing; {_EXTRA}") from error
    return [Image.fromarray(frame) for frame in frames.cpu().numpy()]


def export_to_video(chunks: Tensor | Iterable[Tensor], path: str | Path, fps: float = 24) -> Path:
    """Write an mp4 (H.264), chunk by chunk as they come, and return its path. Lossy: nothing to measure quality on.

    Args:
        chunks: uint8 [F, H, W, 3], all of them or such as ``generate`` yields; H and W even.
        path: an existing file is replaced once the new one is whole.
        fps: frames per second.

    Raises ValueError for other frames, or none, and ImportError where PyAV is missing.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError(f"videos are written by PyAV, which is missing; {_EXTRA}") from error
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    stream = None
    try:
        with av.open(str(part), "w", format="mp4") as file:
            for chunk in [chunks] if isinstance(chunks, Tensor) else chunks:
                _check(chunk)
                for frame in chunk.cpu().numpy():
                    if stream is None:
                        rate = Fraction(fps).limit_denominator(1001)
                        stream = file.add_stream("libx264", rate=rate, options={"crf": "18"})
                        stream.height, stream.width = frame.shape[:2]
                        stream.pix_fmt = "yuv420p"
                    file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            if stream is None:
                raise ValueError("there are no frames to write; give those that generate yields, which come once")
            file.mux(stream.encode())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _check(frames: Tensor) -> None:
    shape, dtype = tuple(getattr(frames, "shape", ())), str(getattr(frames, "dtype", type(frames).__name__))
    if dtype != "torch.uint8" or len(shape) != 4 or shape[3] != 3 or shape[1] % 2 or shape[2] % 2:
        raise ValueError(f"frames must be uint8 [F, H, W, 3], H and W even, got {dtype} {list(shape)}")
