"""How much tokens differ from one frame before: by hand, across chunks and windows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from flowcache.reuse.evidence import EvidenceReader
from flowcache.reuse.motion import MotionMeter
from flowcache.schedule import Schedule, diffusion_forcing_schedule

NAN = float("nan")
# Two windows of three chunks, the second of which begins with the first one's last; one step each.
SCHEDULE = diffusion_forcing_schedule(5, [500], ar_step=1, window_chunks=3, overlap_chunks=1)


class Frames:
    """Of chunk c two frames of one token, 2c and 2c + 1, in its first channel; in its second the same, negative."""

    def __init__(self, schedule: Schedule = SCHEDULE, device: str = "cpu") -> None:
        self.schedule, self.device = schedule, device

    def frames(self, kind: str, chunks: tuple[int, ...]) -> Tensor:
        values = torch.tensor([[2.0 * chunk, 2.0 * chunk + 1] for chunk in chunks], device=self.device)
        return torch.stack([values, -values], dim=-1).view(1, -1, 1, 2)


def measured(across_windows: bool, kind: str = "latent") -> list[list[float]]:
    meter = MotionMeter(Frames(), kind, across_windows)
    return [meter.measure(row).flatten().tolist() for row in SCHEDULE.rows]


def test_a_first_frame_is_compared_with_the_last_one_of_the_chunk_before():
    assert [row.chunks for row in SCHEDULE.rows] == [(0,), (1,), (2,), (3,), (4,)]
    found = measured(across_windows=False)
    assert str(found) == str([[NAN, 1.0], [1.0, 1.0], [1.0, 1.0], [NAN, 1.0], [1.0, 1.0]])


def test_as_published_the_first_chunk_of_a_window_is_compared_with_one_of_the_window_before():
    found = measured(across_windows=True)
    assert found[3] == [5.0, 1.0]  # 6 less the last frame of chunk 0, which stood there: 1


def test_outputs_of_blocks_differ_relative_to_their_size():
    found = measured(across_windows=False, kind="block_output")
    assert found[2] == pytest.approx([1 / 3, 1 / 4])


def test_neighbours_of_a_row_are_compared_as_they_are_then():
    rows = SCHEDULE.rows
    both = SimpleNamespace(index=0, window=0, chunks=(0, 1), finished=())
    assert str(MotionMeter(Frames(), "latent").measure(both).tolist()) == str([[[[NAN], [1.0]]], [[[1.0], [1.0]]]])
    assert rows[0].finished == (0,)


def test_motion_comes_to_the_host_with_the_next_rows_evidence_and_once():
    evidence = EvidenceReader(None, (), MotionMeter(Frames(), "latent"))
    assert evidence.read(SCHEDULE.rows[0]) == ({}, None)
    evidence.done(SCHEDULE.rows[0])
    distances, (row, reports) = evidence.read(SCHEDULE.rows[1])
    assert (distances, row, list(reports)) == ({}, SCHEDULE.rows[0], [0])
    assert reports[0].motion[0, 1].tolist() == [1.0]
    assert evidence.read(SCHEDULE.rows[2]) == ({}, None)


def test_a_dry_run_has_no_motion():
    with pytest.raises(ValueError, match="a dry run on device meta has no 'latent' distances"):
        MotionMeter(Frames(device="meta"), "latent").measure(SCHEDULE.rows[0])
