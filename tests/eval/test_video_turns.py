"""A video that its header turns is read upright, or refused."""

import struct
from pathlib import Path

import numpy as np
import pytest

from eval.video_io import (
    read_video,
    write_lossless,
)


@pytest.fixture
def clip() -> np.ndarray:
    """Noise, which no lossy coder keeps: uint8 [5, 32, 48, 3]."""
    return np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)


ONE = 0x10000  # 1 in an mp4's matrix


TURNS = {  # x to (a, b), y to (c, d), and what is seen of [F, H, W, 3]
    "as it is": ((1, 0, 0, 1), lambda v: v),
    "90 degrees clockwise": ((0, 1, -1, 0), lambda v: np.rot90(v, -1, (1, 2))),
    "180 degrees": ((-1, 0, 0, -1), lambda v: np.rot90(v, 2, (1, 2))),
    "90 degrees anticlockwise": ((0, -1, 1, 0), lambda v: np.rot90(v, 1, (1, 2))),
    "mirrored": ((-1, 0, 0, 1), lambda v: v[:, :, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda v: v[:, ::-1]),
    "transposed": ((0, 1, 1, 0), lambda v: v.swapaxes(1, 2)),
    "transposed the other way": ((0, -1, -1, 0), lambda v: v[:, ::-1, ::-1].swapaxes(1, 2)),
    "twice as wide": ((2, 0, 0, 1), lambda v: v),
}


def turned(path: Path, frames: np.ndarray, a: float, b: float, c: float, d: float) -> Path:
    """A video whose header says how to turn it, as phones write it."""
    write_lossless(path, frames, 24)
    whole = path.read_bytes()
    place = whole.index(struct.pack(">9i", ONE, 0, 0, 0, ONE, 0, 0, 0, 0x40000000), whole.index(b"tkhd"))
    matrix = struct.pack(
        ">9i", *(round(ONE * entry) for entry in (a, b)), 0, *(round(ONE * e) for e in (c, d)), 0, 0, 0, 0x40000000
    )
    path.write_bytes(whole[:place] + matrix + whole[place + 36 :])
    return path


@pytest.mark.parametrize("turn", TURNS)
def test_a_video_is_upright_as_its_header_says(tmp_path, clip, turn):
    matrix, seen = TURNS[turn]
    found = read_video(turned(tmp_path / "clip.mp4", clip, *matrix))
    assert found.flags.c_contiguous
    assert np.array_equal(found, seen(clip))


@pytest.mark.parametrize("degrees", [5, 30, 45, 100])
def test_a_video_that_no_quarter_turn_makes_upright_is_refused(tmp_path, clip, degrees):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    path = turned(tmp_path / "clip.mp4", clip, cos, sin, -sin, cos)
    with pytest.raises(ValueError, match=r"clip\.mp4 is shown turned by other than quarter turns; convert it"):
        read_video(path)
