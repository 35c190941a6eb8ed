"""What the first README said on the command line still works."""

from __future__ import annotations

import pytest

from experiments.job.cli import check_overrides, compose_config
from experiments.job.job import make_job
from experiments.job.old_names import todays
from flowcache.kv.select.joint import Joint


def test_every_old_option_goes_on_under_its_new_name_and_says_so(capsys):
    given = [
        "method=flowcache_fast",
        "method.threshold=0.03",
        "method.warmup_steps=8",
        "method.last_step=global",
        "method.reuse=displacement",
        "method.refresh_clean_kv=false",
        "method.kv_budget=2 chunks",
        "method.compression.mix_lambda=0.1",
    ]
    renamed = todays(given)
    check_overrides(renamed)
    method = make_job(compose_config(renamed)).method
    reuse, forecast, kv = method.reuse, method.forecast, method.kv
    assert (reuse.threshold, reuse.warmup_steps, reuse.last_step) == (0.03, 8, "global")
    assert forecast.quantity == "displacement"
    assert (kv.budget, kv.select) == ("2 chunks", Joint(mix_lambda=0.1))
    assert not method.refresh_clean_kv
    said = capsys.readouterr().err
    assert "method.kv_budget is now called kv.budget\n" in said
    assert said.count("is now called") == 6  # not of the method's own


@pytest.mark.parametrize(
    "argument", ["method=every_k", "reuse.every=3", "method.attention=cached", "-m", "prompts=a=b"]
)
def test_todays_names_stay_as_they_are(capsys, argument):
    assert todays([argument]) == [argument]
    assert capsys.readouterr().err == ""
