"""How far a generation is, for who waits for it: after every row, and a bar that shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """After a row.

    Attributes:
        row, num_rows: that is done, from 0 on, and of how many.
        computed, active: the row's chunks that computed, and all that took a step.
        finished: chunks that the row finished; their frames come right after.
        num_chunks: of the video.
    """

    row: int
    num_rows: int
    computed: tuple[int, ...]
    active: tuple[int, ...]
    finished: tuple[int, ...]
    num_chunks: int


# Told after every row; returning False ends the generation there.
Callback = Callable[[Progress], bool | None]


def progress_bar(**options: object) -> Callback:
    """A callback for ``generate`` that shows rows and the part that computed; options are those of ``tqdm``."""
    from tqdm.auto import tqdm

    bar = tqdm(unit="row", **options)
    steps = [0, 0]  # computed, taken

    def show(progress: Progress) -> None:
        steps[0] += len(progress.computed)
        steps[1] += len(progress.active)
        bar.total = progress.num_rows
        bar.set_postfix(computed=f"{steps[0] / steps[1]:.2f}", refresh=False)
        bar.update()
        if progress.row == progress.num_rows - 1:
            bar.close()

    return show
