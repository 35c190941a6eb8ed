"""A SkyReels-V2 video's chunks as frames, window after window, each decoded once."""

from __future__ import annotations

from torch import Tensor

from flowcache.models.skyreels.window import WindowLatents
from flowcache.models.wan.vae import FrameStream


class ChunkFrames:
    """Windows decode from their beginning, so that a chunk brings those before it along.

    Args:
        stream: decodes, and encodes a window's end for the next one.
        first_chunk: the first that is not given.
        emit_given: whether given whole chunks are part of the video (an image), or were there before it.
    """

    def __init__(self, stream: FrameStream, first_chunk: int, emit_given: bool) -> None:
        self._stream, self._next, self._emit_given = stream, first_chunk, emit_given
        self._decoded: dict[int, Tensor] = {}  # but not asked for yet

    def open(self, given: Tensor | None, is_first: bool) -> None:
        """Begin a window with the latents [1, C, p, h, w] of whole chunks, or with none."""
        self._stream.open(given, emit=self._emit_given and is_first)

    def take(self, chunk: int, state: WindowLatents) -> Tensor:
        """A chunk's frames, uint8 [F, H, W, 3], once; the window's latents up to it are clean."""
        self._decode_through(chunk, state)
        return self._decoded.pop(chunk)

    def last_latents(self, state: WindowLatents) -> Tensor:
        """Of a finished window's last frames, for the one that begins with them: [1, C, p, h, w]."""
        self._decode_through(state.window.chunks[-1], state)
        return self._stream.encode_last_frames()

    def _decode_through(self, last: int, state: WindowLatents) -> None:
        for chunk in range(self._next, last + 1):
            self._decoded[chunk] = self._stream.decode(state.latents[:, :, state.frames(chunk)])
            self._next = chunk + 1
