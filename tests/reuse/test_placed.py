"""Plans of computed steps: what a file may say, whom its positions are for, and how other grids take it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowcache.reuse.placed import Placed
from flowcache.reuse.plan import Plan, carried_over, chunk_times
from flowcache.sampler import sample
from flowcache.schedule import Schedule, diffusion_forcing_schedule, staged_schedule, timesteps
from flowcache.trace import Trace
from tests.methods import method
from tests.models import magi_goldens, skyreels_goldens

STAGED = staged_schedule(6, timesteps(8))
WINDOWS = diffusion_forcing_schedule(9, range(900, 100, -100), ar_step=2, window_chunks=5, overlap_chunks=2)
FIRST = [[0, 2, 4, 7], [0, 1, 6, 7], [0, 6, 7]]
LATER = [[0, 3, 7], [0, 6, 7]]


def write(folder: Path, schedule: Schedule = STAGED, **changes) -> str:
    chunk = schedule.windows[0].generated[0]
    data = {
        "times": chunk_times(schedule, chunk),
        "shares": {"0.5": {"first_window": FIRST, "later_windows": LATER}},
        "weights": "0123",
        **changes,
    }
    path = folder / "small.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return str(path)


def computed(policy: Placed, schedule: Schedule) -> dict[int, list[int]]:
    """By chunk, as the sampler would ask."""
    policy = policy.fresh()
    steps: dict[int, list[int]] = {}
    for row in schedule.rows:
        decision = policy.decide(row, {}, schedule)
        for step in row.steps:
            if step.chunk in decision.compute:
                steps.setdefault(step.chunk, []).append(step.step)
    return steps


def test_a_chunk_computes_the_steps_of_its_position_and_later_ones_those_of_the_last(tmp_path):
    steps = computed(Placed(share=0.5, plan=write(tmp_path)), STAGED)
    assert steps == dict(enumerate([FIRST[0], FIRST[1], *[FIRST[2]] * 4]))


def test_chunks_of_later_windows_have_positions_of_their_own(tmp_path):
    steps = computed(Placed(share=0.5, plan=write(tmp_path, WINDOWS)), WINDOWS)
    generated = list(WINDOWS.windows[1].generated)
    assert [steps[chunk] for chunk in range(5)] == [FIRST[0], FIRST[1], *[FIRST[2]] * 3]
    assert [steps[chunk] for chunk in generated] == [LATER[0], *[LATER[1]] * (len(generated) - 1)]


def test_given_chunks_count_as_chunks_before(tmp_path):
    schedule = staged_schedule(6, timesteps(8), prefix_chunks=1)
    steps = computed(Placed(share=0.5, plan=write(tmp_path)), schedule)
    assert list(steps) == [1, 2, 3, 4, 5]
    assert steps[1] == FIRST[1]


def test_a_plan_is_told_from_others_by_its_content_wherever_it_lies(tmp_path):
    (tmp_path / "a").mkdir()
    here, there = Plan.read(write(tmp_path)), Plan.read(write(tmp_path / "a"))
    other = Plan.read(write(tmp_path / "a", weights="4567"))
    assert here.described() == there.described() != other.described()
    assert str(tmp_path) not in str(method(Placed(share=0.5, plan=here)).described())
    policy = Placed(share=0.5, plan=here)
    assert pickle.loads(pickle.dumps(policy)) == policy == policy.fresh()


def test_a_share_that_is_not_in_the_plan_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(ValueError, match=r"share=0\.3 is not in the plan small; choose one of 0\.5, or calibrate it"):
        Placed(share=0.3, plan=write(tmp_path)).check_schedule(STAGED)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shares": {}}, "no shares"),
        ({"shares": {"0.5": {"first_window": [], "later_windows": []}}}, "says nothing of the first window"),
        ({"shares": {"0.5": {"first_window": [[1, 7]], "later_windows": []}}}, "must rise from 0 to 7"),
        ({"shares": {"0.5": {"first_window": [[0, 3]], "later_windows": []}}}, "must rise from 0 to 7"),
        ({"shares": {"0.5": {"first_window": [[0, 3, 3, 7]], "later_windows": []}}}, "must rise from 0 to 7"),
        ({"shares": {"2": {"first_window": FIRST, "later_windows": []}}}, "not one of 0 to 1"),
        ({"times": "soon"}, "cannot be read as a plan"),
    ],
)
def test_a_file_that_is_no_plan_says_why(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        Placed(share=0.5, plan=write(tmp_path, **changes))


def test_a_file_that_is_not_there_says_what_writes_one(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.json.*give a file that python -m experiments.calibrate"):
        Placed(share=0.5, plan=str(tmp_path / "nowhere.json"))


@pytest.mark.parametrize("share", [-0.1, 1.5, "half", True])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match=r"share=.* must be a number from 0 to 1"):
        Placed(share=share)


# Other grids.


@given(
    st.integers(4, 40),
    st.sampled_from([4, 8, 16, 64]),
    st.sampled_from([1.0, 3.0]),
    st.data(),
)
def test_another_grid_gets_as_large_a_part_of_its_steps_with_the_first_the_last_and_the_jumps(
    num_steps, other_steps, shift, data
):
    steps = sorted({0, num_steps - 1, *data.draw(st.sets(st.integers(0, num_steps - 1)))})
    times, other = timesteps(num_steps).tolist(), timesteps(other_steps, shift=shift).tolist()
    jumps = (3 * other_steps // 4,)
    carried = carried_over(tuple(steps), times, other, jumps)
    assert list(carried) == sorted(set(carried))
    assert {0, other_steps - 1, *jumps} <= set(carried)
    wanted = min(other_steps, max(2, round(len(steps) * other_steps / num_steps)))
    assert wanted <= len(carried) <= wanted + 1


def test_steps_are_carried_over_by_their_times_whichever_way_those_run():
    dense_late = (0, *range(24, 32))
    times = [n / 32 for n in range(33)]
    rising = carried_over(dense_late, times, [n / 64 for n in range(65)], ())
    falling = carried_over(dense_late, [1 - t for t in times], [1 - n / 64 for n in range(65)], ())
    assert rising == falling
    assert sum(step >= 46 for step in rising) >= len(rising) - 3


def test_a_plan_of_its_own_grid_is_taken_as_it_is_and_of_another_with_a_warning(tmp_path, recwarn):
    policy = Placed(share=0.5, plan=write(tmp_path))
    policy.check_schedule(STAGED)
    assert not recwarn
    with pytest.warns(UserWarning, match="another grid of 8 steps, .* carried over to these 16"):
        policy.check_schedule(staged_schedule(6, timesteps(16)))
    with pytest.warns(UserWarning, match="carried over"):
        policy.check_schedule(staged_schedule(6, timesteps(8, shift=1.0)))


# Without a plan.


@given(st.sampled_from([8, 16, 30, 64]), st.floats(0.05, 1))
def test_the_plain_rule_computes_about_the_share_and_what_it_must(num_steps, share):
    schedule = staged_schedule(3, timesteps(num_steps), window_size=2)
    steps = Placed(share=share).computed_steps(schedule)
    for chunk, own in steps.items():
        must = {0, num_steps - 1, *schedule.jumps(chunk)}
        assert must <= own
        assert len(own) == max(len(must), round(share * num_steps))


def test_the_plain_rule_is_denser_where_a_chunk_begins_and_where_its_neighbour_finishes():
    schedule = staged_schedule(3, timesteps(64))
    steps = Placed(share=0.25).computed_steps(schedule)[1]  # its neighbour finishes before step 48
    inside = [len(steps & set(range(start, start + 8))) for start in range(0, 64, 8)]
    assert inside[0] > inside[2] < inside[6]
    assert inside[2] == inside[3] > 0


@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens], ids=["magi", "skyreels"])
def test_a_model_without_a_plan_is_told_how_to_make_one(goldens):
    with pytest.warns(UserWarning, match="reuse=placed has no plan .* python -m experiments.calibrate reuse=placed"):
        generation = goldens.small_generation(method(Placed(share=0.5)))
    list(sample(generation, trace := Trace()))
    assert 0.45 < trace.computed_fraction < 0.7


def test_jumps_compute_also_where_chunks_finish_at_other_steps_than_the_plans(tmp_path):
    """Another ar_step keeps the times and moves the jumps."""
    times = range(900, 100, -100)
    made, other = (
        diffusion_forcing_schedule(5, times, ar_step=ar_step, window_chunks=5, overlap_chunks=2) for ar_step in (2, 3)
    )
    assert (made.jumps(1), other.jumps(1)) == ((6,), (5,))
    policy = Placed(share=0.5, plan=write(tmp_path, made))
    with pytest.warns(UserWarning, match="or chunks that finish at others"):
        policy.check_schedule(other)
    for chunk, steps in computed(policy, other).items():
        assert set(other.jumps(chunk)) <= set(steps)


def test_a_plan_is_a_file_of_either_type_and_nothing_else(tmp_path):
    path = write(tmp_path)
    assert Placed(share=0.5, plan=Path(path)) == Placed(share=0.5, plan=path)
    with pytest.raises(ValueError, match=r"plan=3 must be the file of a plan"):
        Placed(share=0.5, plan=3)


def test_a_plan_with_a_position_of_no_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must rise from 0 to 7"):
        Plan.read(write(tmp_path, shares={"0.5": {"first_window": [[]], "later_windows": []}}))
