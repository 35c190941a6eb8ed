"""MagCache: against what the official code decides and gives, over times, and on every model."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from baselines.magcache import MagCache
from baselines.magnitudes import Magnitudes
from experiments.studies.magnitudes import norms
from flowcache.forecast.history import OutputHistory
from flowcache.forecast.hold import Hold
from flowcache.schedule import Schedule, sequential_schedule, staged_schedule, timesteps
from flowcache.trace import Trace
from tests.golden_files import manifest, tensors
from tests.methods import method, vanilla
from tests.models import magi_goldens, skyreels_goldens

MANIFEST, TENSORS = manifest("magcache_easycache/magcache_easycache"), tensors("magcache_easycache/magcache_easycache")
CASES = {name: case for name, case in MANIFEST.items() if name.startswith("mag_")}
TOLERANCE = 1e-6
OPTIONS = {"threshold": 0.12, "most_skips": 2, "retention": 0.2}


def table(*ratios: list[float], times: list[float] | None = None) -> Magnitudes:
    times = list(map(float, range(len(ratios[0]) + 1))) if times is None else times
    own = Magnitudes.taken({"times": times, "ratios": ratios})
    return Magnitudes(name="made", sha256="0", provenance={}, **own)


class TwoNetworks(MagCache):
    """Wan2.2's text to video: from step 8 on a second network, which begins anew to compute all steps."""

    def _always(self, branch: int, step: int, num_steps: int) -> bool:
        call, split, calls = 2 * step + branch, 2 * 8, 2 * num_steps
        second = split <= call <= (calls - split) * self.retention + split
        return second or call < int(split * self.retention)


def policy_of(settings: dict[str, Any]) -> MagCache:
    if "thr" not in settings:  # diffusers' hook: one branch, whose first ratio is given as 1
        own = {"threshold": "threshold", "most_skips": "max_skip_steps", "retention": "retention_ratio"}
        options = {name: settings[theirs] for name, theirs in own.items()}
        return MagCache(table=table(settings["ratios"][1:]), published=True, **options)
    options = {"threshold": settings["thr"], "most_skips": settings["K"], "retention": settings["ret"]}
    ratios = table(settings["ratios"][0::2], settings["ratios"][1::2])
    kind = TwoNetworks if "split" in settings else MagCache
    return kind(table=ratios, branches="apart", published=True, **options)


def one_chunk(num_steps: int) -> Schedule:
    return sequential_schedule(1, [float(num_steps - step) for step in range(num_steps)])


def as_input(residual: Tensor, like: Tensor) -> Tensor:
    """[1, tokens, C] -> [C, F, H, W], or as it is."""
    return residual.view_as(like) if residual.shape == like.shape else residual[0].T.reshape(like.shape)


def calls_of(policy: MagCache, schedule: Schedule, branches: int) -> list[bool]:
    policy = policy.fresh()
    decisions = [policy.decide(row, {}, schedule) for row in schedule.rows]
    return [bool(decision.of_branch(branch)) for decision in decisions for branch in range(branches)]


@pytest.mark.parametrize("name", CASES)
def test_decisions_and_outputs_are_the_official_codes(name):
    case = CASES[name]
    settings, policy = case["settings"], policy_of(case["settings"])
    branches, schedule = (2 if "thr" in settings else 1), one_chunk(settings["steps"])
    computed = settings.get("videos", 1) * calls_of(policy, schedule, branches)
    assert list(map(int, computed)) == case["computed"]
    x, residuals = TENSORS[f"{name}.x"], TENSORS[f"{name}.res"]
    outputs = []
    for call, computes in enumerate(computed):
        place = call % (branches * settings["steps"])
        if place == 0:
            histories = [OutputHistory(Hold()) for _ in range(branches)]
        history, (step,) = histories[place % branches], schedule.rows[place // branches].steps
        if computes:
            history.update(step, residuals[call], x[call])
        residual = history.newest(0) if computes else history.predict(step)
        outputs.append(x[call] + as_input(residual, x[call]))
    torch.testing.assert_close(torch.stack(outputs), TENSORS[f"{name}.out"], atol=TOLERANCE, rtol=0)


def test_what_it_counts_is_the_official_codes():
    case = CASES["mag_default"]
    policy, schedule = policy_of(case["settings"]), one_chunk(20)
    for row in schedule.rows:
        policy.decide(row, {}, schedule)
        for branch in range(2):
            run, call = policy._runs[branch, 0], 2 * row.index + branch
            assert run.error == pytest.approx(case["err"][call], abs=1e-7)
            assert run.product == pytest.approx(case["ratio"][call], abs=1e-7)
            assert run.skipped == case["skipped"][call]


@pytest.mark.parametrize("length", MANIFEST["nearest_interp"])
def test_other_step_counts_take_the_nearest_ratio_as_published(length):
    ratios = table([1 + i / 100 for i in range(1, 21)])  # 21 with the first one's, 1
    taken = [ratios.published_ratio(0, step, int(length)) for step in range(int(length))]
    assert taken == pytest.approx([1 + i / 100 for i in MANIFEST["nearest_interp"][length]])


def test_a_table_holds_what_the_official_calibration_measures():
    residuals = TENSORS["calibration.res"]
    ratios = [float((norms(now) / norms(before)).mean()) for before, now in zip(residuals, residuals[2:], strict=False)]
    assert ratios == pytest.approx(MANIFEST["calibration"]["norm_ratio"], abs=1e-5)


def test_norms_are_over_the_channels_of_latents_and_of_tokens():
    assert norms(torch.tensor([[[3.0, 4.0]], [[0.0, 2.0]]])).tolist() == [5, 2]
    assert norms(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1, 1)).tolist() == [5]


def test_over_times_it_decides_on_its_own_grid_as_published_but_for_the_last_step():
    settings = CASES["mag_diffusers"]["settings"]
    policy, schedule = policy_of(settings), one_chunk(20)
    times = [step.t for row in schedule.rows for step in row.steps]
    ratios = table(settings["ratios"][1:], times=times)
    options = {"threshold": 0.06, "most_skips": 3, "retention": 0.2}
    sound = calls_of(MagCache(table=ratios, **options), schedule, 1)
    assert sound[:-1] == calls_of(policy, schedule, 1)[:-1]
    assert sound[-1]


@given(st.lists(st.floats(0.5, 2), min_size=2, max_size=8), st.floats(0, 1), st.booleans())
def test_ratios_between_times_multiply_to_those_of_the_whole_step(ratios, part, falling):
    times = [(-1 if falling else 1) * step**2 for step in range(len(ratios) + 1)]
    made = table(ratios, times=times)
    for start, end, whole in zip(times, times[1:], ratios, strict=False):
        between = start + part * (end - start)
        assert made.ratio(0, start, between) * made.ratio(0, between, end) == pytest.approx(whole)
        assert made.ratio(0, start, start + (end - start) / 2) == pytest.approx(whole**0.5)
    assert made.ratio(0, times[-1], times[-1] + (times[-1] - times[0])) == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 1.1, 1.21: errors 0.1, 0.31; 0.3 is between them.
        ({"threshold": 0.3, "most_skips": 9, "retention": 0}, "cscscscscc"),
        ({"threshold": 9, "most_skips": 2, "retention": 0}, "csscsscssc"),
        ({"threshold": 9, "most_skips": 9, "retention": 0}, "cssssssssc"),
        ({"threshold": 9, "most_skips": 9, "retention": 0.45}, "cccccssssc"),  # 4.5 of ten steps, up
        ({"threshold": 9, "most_skips": 9, "retention": 1}, "cccccccccc"),
        ({"threshold": 0, "most_skips": 9, "retention": 0}, "cccccccccc"),
        ({"threshold": 9, "most_skips": 0, "retention": 0}, "cccccccccc"),
    ],
)
def test_steps_by_hand(options, expected):
    policy = MagCache(table=table([1.1] * 9, times=[10.0 - step for step in range(10)]), **options)
    assert "".join("c" if computes else "s" for computes in calls_of(policy, one_chunk(10), 1)) == expected


def test_without_a_table_the_number_of_skips_alone_decides_and_that_is_said():
    policy = MagCache(threshold=0.01, most_skips=3, retention=0)
    with pytest.warns(UserWarning, match="reuse=magcache has no table of ratios and takes them all as 1"):
        policy.check_schedule(one_chunk(10))
    assert [i for i, computes in enumerate(calls_of(policy, one_chunk(10), 1)) if computes] == [0, 4, 8, 9]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MagCache(table=table([1.0]), **OPTIONS).check_schedule(one_chunk(10))


def test_every_chunk_counts_for_itself_whatever_the_others_do():
    schedule = staged_schedule(5, timesteps(8))
    times = timesteps(8).tolist()[:-1]
    policy = MagCache(table=table([1.2, 0.9, 1.05, 1.3, 1.0, 0.8, 1.1], times=times), **OPTIONS | {"threshold": 0.25})
    steps: dict[int, list[int]] = {}
    for row in schedule.rows:
        for chunk in policy.decide(row, {}, schedule).compute:
            steps.setdefault(chunk, []).append(row.step_of(chunk).step)
    assert len({tuple(own) for own in steps.values()}) == 1
    assert 2 < len(steps[0]) < 8


@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens], ids=["magi", "skyreels"])
def test_a_threshold_of_0_is_vanilla_bit_for_bit(goldens):
    careful = method(MagCache(table=table([1.5, 0.7]), threshold=0, most_skips=3, retention=0))
    expected = goldens.latents_of(goldens.small_generation(vanilla(attention="cached")))
    assert torch.equal(goldens.latents_of(goldens.small_generation(careful)), expected)


def test_branches_apart_skip_each_by_its_own_ratios_and_cost_what_they_compute():
    def run(**options) -> tuple[Tensor, Trace]:
        ratios = table([1.0, 1.0], [1.5, 1.5], times=[1000.0, 500.0, 0.0])  # without the prompt it computes more
        policy = MagCache(table=ratios, threshold=0.1, most_skips=9, retention=0, **options)
        trace = Trace()
        return skyreels_goldens.latents_of(skyreels_goldens.small_generation(method(policy)), trace), trace

    (together, of_both), (apart, of_each) = run(), run(branches="apart")
    assert [entry.action for entry in of_both.entries] == [entry.action for entry in of_each.entries]
    assert not torch.equal(together, apart)
    assert of_both.flops < of_each.flops


def test_a_model_whose_branches_skip_together_refuses_them_apart():
    with pytest.raises(ValueError, match="MAGI-1 cannot follow MagCache with these options: it decides on each guida"):
        magi_goldens.small_generation(method(MagCache(branches="apart", **OPTIONS)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -1}, "threshold=-1 must be a finite number of at least 0"),
        ({"most_skips": 1.5}, "most_skips=1.5 must be a whole number of at least 0"),
        ({"retention": 2}, "retention=2 must be a number from 0 to 1"),
        ({"branches": "both"}, "branches='both' is unknown; choose 'together' or 'apart'"),
        ({"published": "no"}, "published='no' must be true or false"),
        ({"table": 3}, "table=3 must be the file of a table, or null for none"),
        ({"table": table([1.0]), "branches": "apart"}, "needs ratios of 2 guidance branches, and the table made has 1"),
        (
            {"table": "nowhere.json"},
            r"table='nowhere.json' cannot be read as a table .* experiments.calibrate reuse=magcache wrote",
        ),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MagCache(**OPTIONS | options)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"times": [0, 1, 1], "ratios": [[1, 1]]}, "its times must rise or fall"),
        ({"times": [0], "ratios": [[]]}, "its times must rise or fall"),
        ({"times": [0, 1, 2], "ratios": []}, "every branch of it needs 2 ratios"),
        ({"times": [0, 1, 2], "ratios": [[1]]}, "every branch of it needs 2 ratios"),
        ({"times": [0, 1], "ratios": [[0]]}, "its ratios must be finite and above 0"),
        ({"times": [0, 1]}, "'ratios'"),
    ],
)
def test_a_file_that_is_no_table_is_refused(data, message, tmp_path):
    path = tmp_path / "made.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        MagCache(table=path, **OPTIONS)
