"""Diffusion-forcing schedules: the official timestep matrices, and what must hold for any windows."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowcache.models.skyreels.config import Sampling
from flowcache.models.wan.unipc import noise_levels
from flowcache.schedule import Schedule, Window, diffusion_forcing_schedule, staggered_rows
from tests.models.skyreels_goldens import manifest, tensors

CASES = manifest("timestep_matrices")["cases"]
TABLES = tensors("timestep_matrices")


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["index"]))
def test_rows_are_the_official_matrices(case):
    block, times = case["block"], noise_levels(case["steps"], case["shift"])[1]
    num_chunks = case["num_frames"] // block
    visible = case["base_num_frames"] // block
    rows = staggered_rows(num_chunks, times, case["ar_step"], case["num_pre_ready"] // block, visible)
    window = Window(0, num_chunks, case["num_pre_ready"] // block, range(len(rows)))
    schedule = Schedule(num_chunks, window.prefix_chunks, case["steps"], visible, tuple(rows), (window,))
    assert len(rows) == case["rows"]

    # Upstream counts steps from 1 (0 waits), and a block's frames alike.
    index = torch.tensor([[schedule.steps_taken(row, chunk) + 1 for chunk in window.chunks] for row in rows])
    index = index.repeat_interleave(block, dim=1)
    name = case["index"]
    assert torch.equal(index.short(), TABLES[f"{name}.step_index"])
    assert torch.equal(torch.tensor([999, *times, 0])[index].short(), TABLES[f"{name}.step_matrix"])
    mask = torch.tensor([[chunk in row.chunks for chunk in window.chunks] for row in rows])
    assert torch.equal(mask.repeat_interleave(block, dim=1), TABLES[f"{name}.update_mask"])
    interval = [[row.visible.start * block, row.visible.stop * block] for row in rows]
    assert interval == case["valid_interval"]
    for row in rows:
        assert [step.t for step in row.steps] == [times[step.step] for step in row.steps]
        assert [step.t_next for step in row.steps] == [[*times, 0][step.step + 1] for step in row.steps]


def test_what_upstream_refuses_is_refused():
    times = noise_levels(20, 8.0)[1]
    with pytest.raises(
        ValueError, match="ar_step=3 is too small for 9 chunks of which 5 are visible: 20 steps need at "
    ):
        staggered_rows(9, times, 3, visible_chunks=5)
    assert len(staggered_rows(9, times, 4, visible_chunks=5)) == 20 + 8 * 4
    for prefix in (-1, 3):
        with pytest.raises(
            ValueError, match=f"a prefix of {prefix} chunks leaves nothing to generate in a window of 3"
        ):
            staggered_rows(3, times, 5, prefix)
    with pytest.raises(ValueError, match="ar_step=-1 must be at least 0 rows"):
        staggered_rows(3, times, -1)
    for overlap in (0, 5):
        with pytest.raises(
            ValueError, match=f"windows of 5 chunks cannot overlap by {overlap}: a video of 6 chunks needs"
        ):
            diffusion_forcing_schedule(6, times, 5, 5, overlap)


@pytest.mark.parametrize(("steps", "shift"), [(20, 8.0), (10, 5.0)])
def test_noise_levels_are_the_official_ones(steps, shift):
    levels, times = noise_levels(steps, shift)
    torch.testing.assert_close(levels, TABLES[f"sigmas.{steps}.{shift}"], atol=1e-7, rtol=0)
    assert times == TABLES[f"timesteps.{steps}.{shift}"].tolist()


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    window = draw(st.integers(2, 6))
    num_chunks = draw(st.integers(1, 16))
    overlap = draw(st.integers(1, window - 1))
    prefix = draw(st.integers(0, min(window, num_chunks) - 1))
    times = noise_levels(draw(st.integers(1, 9)), 8.0)[1]
    return diffusion_forcing_schedule(num_chunks, times, draw(st.integers(0, 12)), window, overlap, prefix)


@given(schedules())
def test_every_chunk_takes_every_step_once_in_order_in_its_window(schedule):
    for window in schedule.windows:
        for chunk in window.generated:
            rows = [row for row in schedule.rows if chunk in row.chunks]
            assert {row.window for row in rows} == {schedule.windows.index(window)}
            assert [row.step_of(chunk).step for row in rows] == list(range(schedule.num_steps))
            assert [row.index for row in rows if chunk in row.finished] == [rows[-1].index]
            for before, after in pairwise(rows):
                assert after.index == before.index + 1
                assert before.step_of(chunk).t_next == after.step_of(chunk).t
    assert schedule.num_chunk_steps == (schedule.num_chunks - schedule.prefix_chunks) * schedule.num_steps


@given(schedules())
def test_windows_cover_the_video_and_begin_with_the_end_of_the_one_before(schedule):
    generated = [chunk for window in schedule.windows for chunk in window.generated]
    assert generated == list(range(schedule.prefix_chunks, schedule.num_chunks))
    assert [row.index for row in schedule.rows] == list(range(len(schedule.rows)))
    assert [index for window in schedule.windows for index in window.rows] == list(range(len(schedule.rows)))
    for before, window in pairwise(schedule.windows):
        assert list(window.chunks)[: window.prefix_chunks] == list(before.chunks)[-window.prefix_chunks :]
        assert before.num_chunks == schedule.window_size
    for row in schedule.rows:
        window = schedule.windows[row.window]
        assert row.visible == window.chunks
        assert row.chunks == tuple(range(row.chunks[0], row.chunks[-1] + 1))
        taken = [schedule.steps_taken(row, chunk) for chunk in window.chunks]
        assert taken == sorted(taken, reverse=True)
        assert all(taken[i] == schedule.num_steps for i in range(window.prefix_chunks))


def test_the_papers_setting_takes_70_and_65_rows():
    sampling = Sampling()
    schedule = sampling.schedule(177, noise_levels(50, 8.0)[1], 0, False)
    assert [len(window.rows) for window in schedule.windows] == [70, 65]
    assert [window.chunks for window in schedule.windows] == [range(5), range(4, 9)]
    assert sampling.frames_of(schedule.num_chunks) == 177


@pytest.mark.parametrize(
    ("num_frames", "windows"),
    [(17, [1]), (97, [5]), (117, [5, 2]), (137, [5, 3]), (177, [5, 5]), (197, [5, 5, 2]), (257, [5, 5, 5])],
)
def test_the_last_window_is_as_long_as_it_must_be(num_frames, windows):
    schedule = Sampling().schedule(num_frames, noise_levels(50, 8.0)[1], 0, False)
    assert [window.num_chunks for window in schedule.windows] == windows


@pytest.mark.parametrize(("more_frames", "windows"), [(20, [2]), (80, [5]), (100, [5, 2]), (160, [5, 5])])
def test_a_continued_video_counts_its_new_frames(more_frames, windows):
    schedule = Sampling().schedule(more_frames, noise_levels(50, 8.0)[1], 1, True)
    assert [window.num_chunks for window in schedule.windows] == windows
    assert {window.prefix_chunks for window in schedule.windows} == {1}
    assert 20 * sum(len(window.generated) for window in schedule.windows) == more_frames


@pytest.mark.parametrize(
    ("frames", "continues", "message"),
    [
        (100, False, "num_frames=100 does not fill whole chunks of 5 latent frames; try num_frames=97"),
        (176, False, "num_frames=176 does not fill whole chunks of 5 latent frames; try num_frames=177"),
        (0, False, "num_frames=0 does not fill whole chunks of 5 latent frames; try num_frames=17"),
        (90, True, "num_frames=90 more does not fill whole chunks of 5 latent frames; try num_frames=80"),
        (0, True, "num_frames=0 more does not fill whole chunks of 5 latent frames; try num_frames=20"),
    ],
)
def test_frames_that_fill_no_whole_chunks_are_refused(frames, continues, message):
    with pytest.raises(ValueError, match=message):
        Sampling().schedule(frames, noise_levels(50, 8.0)[1], int(continues), continues)
