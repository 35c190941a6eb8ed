"""Which frames' keys a chunk attends to, and the cache that this takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from flowcache.kv.window import Sink
from flowcache.models.wan.blocks import Blocks
from flowcache.models.wan.config import Sampling


class Seen(NamedTuple):
    """Latent frames first..last of the video but for its sink's, and the sink where it is named; see WindowCache."""

    first: int
    last: int
    sink: Sink | None


@dataclass(frozen=True)
class FrameWindow:
    """Of one generation, in latent frames."""

    sampling: Sampling
    blocks: Blocks

    @property
    def num_frames(self) -> int:
        """That the cache holds at once, the sink's among them.

        Where chunks roll, those that run together stand in it whole, beside all but the oldest chunk that the next one
        to be encoded sees.
        """
        s, whole = self.sampling, max(self.blocks.num_frames, self.sampling.sink_frames + 1)
        if s.window_frames is None:
            return whole
        beside = (len(s.steps) - 1) * s.block_frames + s.sink_frames if s.rolling else 0
        return min(s.window_frames + beside, whole)

    @property
    def gathered_frames(self) -> int:
        """Most that are read other than as they stand in the cache."""
        s = self.sampling
        return s.window_frames if s.rolling or (s.relative_rope and s.sink_frames) else 0

    def denoising(self, first: int, end: int) -> Seen:
        """What the chunks see that run together, latent frames first..end - 1: one, or where they roll, several."""
        if not self.sampling.rolling:
            return self.encoding(end)
        sink = self.sampling.sink_frames
        if first < sink:  # the video's beginning knows of nothing but itself
            return Seen(sink, end - 1, "own")
        room = self.sampling.window_frames - sink - (end - first)
        return Seen(first - min(first - sink, room), end - 1, "near")

    def encoding(self, end: int) -> Seen:
        """What a chunk that is finished or given, and ends there, sees."""
        sink = self.sampling.sink_frames
        if self.sampling.window_frames is None:
            return Seen(0, end - 1, None)
        if self.sampling.rolling:
            first = max(0, end - self.sampling.window_frames)
            return Seen(sink, end - 1, "own") if first < sink else Seen(first, end - 1, None)
        first = max(sink, end - (self.sampling.window_frames - sink))
        return Seen(first, end - 1, ("near" if self.sampling.relative_rope else "own") if sink else None)

    def key_frames(self, seen: Seen) -> int:
        """How many those are."""
        sink = self.sampling.sink_frames if seen.sink else 0
        return min(sink, seen.last + 1) + max(0, seen.last + 1 - max(seen.first, sink))

    def check_positions(self, most: int) -> None:
        """Refuse a video whose frames see others further away than the network's positions reach. Raises ValueError."""
        s, frames = self.sampling, self.blocks.num_frames
        bounded = s.rolling or (s.window_frames is not None and (s.relative_rope or not s.sink_frames))
        if frames > most and not bounded:
            far = "its sink" if s.window_frames is not None else "all frames before them"
            cure = "relative_rope=true" if s.window_frames is not None else "a window (window_frames)"
            raise ValueError(
                f"a video of {frames} latent frames is longer than the network's {most} positions, and its last frames "
                f"see {far}; ask for fewer frames, or choose {cure}"
            )
