"""Which latent frames a chunk is: equal blocks, before which one frame may stand alone."""

from __future__ import annotations

from dataclasses import dataclass

from flowcache.models.wan.config import TEMPORAL_FACTOR


@dataclass(frozen=True)
class Blocks:
    """The chunks of a video.

    Attributes:
        num_frames: latent frames of the video, prefix included; they fill whole chunks.
        size: latent frames of a chunk.
        first_alone: the first latent frame is a chunk of its own.
    """

    num_frames: int
    size: int
    first_alone: bool = False

    @property
    def num_chunks(self) -> int:
        return self.chunks_of(self.num_frames)

    def chunks_of(self, num_frames: int) -> int:
        """Chunks that so many first frames fill. Raises ValueError where they fill none whole."""
        alone = self.first_alone and num_frames > 0
        if (num_frames - alone) % self.size:
            before = "one alone and " if self.first_alone else ""
            raise ValueError(f"{num_frames} latent frames are not {before}whole blocks of {self.size}")
        return alone + (num_frames - alone) // self.size

    def start(self, chunk: int) -> int:
        """Its first latent frame; of the chunk after the last, the end of the video."""
        return chunk * self.size - (self.size - 1) * (self.first_alone and chunk > 0)

    def length(self, chunk: int) -> int:
        return self.start(chunk + 1) - self.start(chunk)

    def frames(self, first: int, last: int | None = None) -> slice:
        """Latent frames of chunks first..last."""
        return slice(self.start(first), self.start((first if last is None else last) + 1))


def pixel_frames(num_frames: int) -> int:
    """Of a video of so many latent frames, the first of which is a single one."""
    return max(0, TEMPORAL_FACTOR * (num_frames - 1) + 1)
