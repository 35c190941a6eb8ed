"""What a page shows first: a clip and a frame in which the model does what it can, the shape whole."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from eval.video_io import read_lossless
from experiments.records import Record, RecordStore

_CLEAR = 60  # levels of any colour from the background: something else than it


def first_shown(store: RecordStore, records: Sequence[Record | None]) -> tuple[int, int]:
    """Clip and frame to begin with, of the baseline's records of every clip (None where there is none).

    Of the clips whose caption was found right, the one whose shape is at the picture's border in the fewest frames, for
    one that wraps looks broken to who does not know that it should; one that moves before one that does not. The first
    clip and frame where no caption was checked.
    """
    ranks: dict[int, tuple[float, bool, int]] = {}
    frames: dict[int, int] = {}
    for place, record in enumerate(records):
        if record is None or not record.caption or not record.caption.get("right"):
            continue
        try:
            whole = ~at_border(read_lossless(store.video_path(record.key)))
        except (OSError, ValueError):  # it is gone, or damaged: another one will do
            continue
        ranks[place] = (1 - whole.mean(), record.caption.get("motion") == "staying still", place)
        frames[place] = middle_of_longest(whole)
        if ranks[place][:2] == (0, False):
            break
    best = min(ranks, key=ranks.__getitem__, default=0)
    return best, frames.get(best, 0)


def at_border(frames: np.ndarray) -> np.ndarray:
    """Whether each of a video's frames [F, h, w, 3] shows something else than its background at the border, [F]."""
    frames = frames.astype(np.int16)
    background = np.median(frames.reshape(len(frames), -1, 3), axis=1)[:, None]
    border = np.concatenate([frames[:, 0], frames[:, -1], frames[:, :, 0], frames[:, :, -1]], axis=1)
    return (np.abs(border - background).max(axis=2) > _CLEAR).any(axis=1)


def middle_of_longest(holds: np.ndarray) -> int:
    """Place in the middle of the longest run of what holds, [F]; 0 where nothing does."""
    runs = [list(run) for held, run in groupby(range(len(holds)), key=lambda place: bool(holds[place])) if held]
    longest = max(runs, key=len, default=[0])
    return longest[len(longest) // 2]
