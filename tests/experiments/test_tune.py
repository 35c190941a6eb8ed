"""Tuning any number of any method to a share of vanilla's compute."""

from __future__ import annotations

import pytest

from experiments.job.errors import BadInput
from experiments.studies import tune
from experiments.studies.tune import TOLERANCE
from tests.experiments.made_records import job_of


@pytest.mark.parametrize("share", [0.2, 0.5, 0.735, 0.99])
def test_a_threshold_is_found_over_two_decades(share):
    value, left = tune.tune(lambda threshold: 1 / (1 + 30 * threshold), share, 0.0, 1.0)
    assert left == pytest.approx(share, abs=TOLERANCE)
    assert left == 1 / (1 + 30 * value)


def test_compute_may_rise_with_a_number():
    value, left = tune.tune(lambda kept: kept**2, 0.49, 0.0, 1.0)
    assert (value, left) == (pytest.approx(0.7, abs=0.01), value**2)


@pytest.mark.parametrize(("share", "every"), [(0.5, 2), (0.33, 3), (0.13, 8), (0.4, 3), (1.0, 1)])
def test_whole_numbers_stay_whole_and_the_nearest_is_taken(share, every):
    tried = []
    value, _ = tune.tune(lambda k: tried.append(k) or 1 / k, share, 1, 16)
    assert value == every
    assert all(isinstance(k, int) for k in tried)
    assert len(set(tried)) == len(tried)


def test_a_share_that_no_value_leaves_is_refused():
    with pytest.raises(
        BadInput, match=r"share=0\.01: 1 to 16 leave 0\.0625 to 1\.0000 of vanilla's compute; give between="
    ):
        tune.tune(lambda k: 1 / k, 0.01, 1, 16)


def test_the_number_to_tune_is_the_methods_own(tmp_path):
    job = job_of(tmp_path, "method=flowcache_fast")
    assert tune.numbers(job) == {"reuse.threshold": 0.015, "reuse.warmup_steps": 5}
    assert tune.chosen_option(job, None) == "reuse.threshold"
    assert tune.chosen_option(job, "warmup_steps") == "reuse.warmup_steps"


def test_ends_with_a_point_search_fractions_of_what_is_a_whole_number_today(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tune, "executed_flops", lambda job, model, method: 1 / getattr(method.reuse, "every", 1))
    arguments = ["method=every_k", "option=every", "share=0.4", "num_prompts=1", f"output_dir={tmp_path}"]
    assert tune.main([*arguments, "between=1.0,16.0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["reuse.every 1 leaves 1.0000", "reuse.every 16 leaves 0.0625"]
    *_, every, _, left = lines[-1].partition(" of ")[0].rsplit(" ", 3)
    assert float(every) == pytest.approx(2.5, abs=0.03)
    assert float(left) == pytest.approx(0.4, abs=TOLERANCE)


def test_prompts_and_seed_are_those_of_calibrations_unless_given(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(tune, "executed_flops", lambda job, model, method: asked.append(job) or 0.4)
    arguments = ["method=every_k", "option=every", "share=0.4", f"output_dir={tmp_path}"]
    tune.main(arguments)
    tabled = set(job_of(tmp_path, "num_prompts=64").prompts)
    assert {job.seed for job in asked} == {4321}
    assert all(not tabled & set(job.prompts) for job in asked)
    asked.clear()
    tune.main([*arguments, "seed=7", 'prompts=["a <b>"]'])
    assert {(job.seed, job.prompts) for job in asked} == {(7, ("a <b>",))}


def test_a_whole_number_that_can_be_nothing_else_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tune, "executed_flops", lambda job, model, method: 1.0)
    arguments = ["method=every_k", "option=warmup_steps", "share=0.4", "num_prompts=1", f"output_dir={tmp_path}"]
    assert tune.main([*arguments, "between=1.5,16.0"]) == 2
    assert "warmup_steps=1.5 must be a whole number" in capsys.readouterr().err


def test_the_command_says_what_leaves_what(tmp_path, monkeypatch, capsys):
    """Of a method whose every step but each k-th is spared."""
    monkeypatch.setattr(tune, "executed_flops", lambda job, model, method: 1 / getattr(method.reuse, "every", 1))
    arguments = ["method=every_k", "option=every", "share=0.3", "num_prompts=1", f"output_dir={tmp_path}"]
    assert tune.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["reuse.every 1 leaves 1.0000", "reuse.every 16 leaves 0.0625"]
    assert lines[-1] == "every_k: reuse.every 3 leaves 0.3333 of vanilla's FLOPs (1 prompt)"
