"""The schedule of a pipeline's video, as far as it is known: it grows window by window, while the pipeline runs."""

from __future__ import annotations

from collections.abc import Sequence

from flowcache.schedule import Row, Schedule, Window, staggered_rows


class Windows:
    """Of one video.

    Attributes:
        frames_a_chunk: latent frames of a chunk of the newest window, which may be one chunk as a whole.
    """

    def __init__(self) -> None:
        self._windows: list[Window] = []
        self._rows: list[Row] = []
        self.frames_a_chunk = 0

    def open(self, num_frames: int, times: Sequence[float], ar_step: int, given_frames: int, block: int) -> Schedule:
        """The next window begins: the schedule of all so far.

        Args:
            num_frames: its latent frames.
            times: timesteps of a chunk's steps, falling.
            ar_step: rows from a chunk's start to the next one's.
            given_frames: that it begins with.
            block: latent frames of a chunk that attends to none after it; 1 where all frames attend to each other.

        Raises ValueError for windows that are not whole chunks, and for frames at steps of their own that all attend to
        each other: a chunk that skips would change the others.
        """
        if block == 1 and ar_step:
            raise ValueError(
                f"ar_step={ar_step} has frames at steps of their own, and without causal_block_size each attends to "
                "those after it, so that none can skip by itself; give causal_block_size (5 is published), or ar_step=0"
            )
        if block > 1 and num_frames % block:
            raise ValueError(
                f"{num_frames} latent frames are not whole chunks of causal_block_size={block}; give num_frames of "
                f"{4 * (max(1, round(num_frames / block)) * block - 1) + 1}, or a window (base_num_frames) that is"
            )
        self.frames_a_chunk = num_frames if block == 1 else block
        chunks, given = num_frames // self.frames_a_chunk, 0 if block == 1 else given_frames // block
        last = self._windows[-1] if self._windows else None
        first = 0 if last is None else last.first_chunk + last.num_chunks - given
        index, first_row = len(self._windows), len(self._rows)
        rows = staggered_rows(chunks, times, ar_step, given, first_chunk=first, first_row=first_row, window=index)
        self._windows.append(Window(first, chunks, given, range(first_row, first_row + len(rows))))
        self._rows += rows
        return Schedule(
            first + chunks, self._windows[0].prefix_chunks, len(times), chunks, tuple(self._rows), tuple(self._windows)
        )
