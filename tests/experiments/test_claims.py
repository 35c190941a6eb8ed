"""A claim of the paper is held against the records, both ways."""

from dataclasses import replace

import pytest

from experiments.claims import Claim, notes, the_one
from experiments.collect import finished
from experiments.errors import BadInput
from experiments.records import store_of
from experiments.runner import Runner

EXACT, COARSE = {"method": "flowcache_fast", "threshold": 0.0}, {"method": "flowcache_fast", "threshold": 0.6}


@pytest.fixture
def jobs(small_job):
    thresholds = [small_job(f"method.threshold={t}", "method.warmup_steps=2", "num_prompts=2") for t in (0, 0.6)]
    return [small_job("method=vanilla", "num_prompts=2"), *thresholds]


def test_a_claim_holds_or_goes_against_or_is_left_open(jobs):
    for job in jobs:
        Runner(job).run()
    (note,) = notes([{"text": "Exact beats coarse.", "of": EXACT, "against": COARSE}], jobs)
    assert note.startswith("Exact beats coarse. Holds here: +")
    assert "paired, n 2)" in note
    share = sum(r.flops for r in Runner(jobs[1]).records(jobs[1].prompts))
    share /= sum(r.flops for r in Runner(jobs[2]).records(jobs[2].prompts))
    assert note.endswith(f"at {share:.2f} of the other's compute")
    assert share > 1
    assert "GOES AGAINST THE CLAIM here: -" in Claim("Coarse beats exact.", COARSE, EXACT).verdict(jobs)
    assert "Neither borne out nor contradicted here: +0.00 dB" in Claim("Itself.", EXACT, EXACT).verdict(jobs)
    # A small loss may be claimed.
    note = Claim("Little is lost.", EXACT, EXACT, ahead=-0.5).verdict(jobs)
    assert "Holds here: +0.00 dB PSNR (+0.00 to +0.00, paired, n 2; claimed -0.50 or better)" in note
    # Of LPIPS less is better.
    for job in jobs[1:]:
        for place, record in enumerate(finished(job)):
            store_of(job).save(replace(record, metrics={"lpips": job.method.threshold + place / 10}))
    note = Claim("Exact beats coarse.", EXACT, COARSE, "lpips", 0.5).verdict(jobs)
    assert "Holds here: -0.6000 LPIPS (-0.6000 to -0.6000, paired, n 2; claimed -0.5000 or better)" in note
    assert "GOES AGAINST" in Claim("Exact is far better.", EXACT, COARSE, "lpips", 0.7).verdict(jobs)
    assert "Holds here: +0.6000" in Claim("Coarse costs little.", COARSE, EXACT, "lpips", -0.7).verdict(jobs)
    assert "GOES AGAINST" in Claim("Coarse costs less.", COARSE, EXACT, "lpips", -0.5).verdict(jobs)


def test_without_pairs_a_claim_is_not_tested(jobs):
    note = Claim("Exact beats coarse.", EXACT, COARSE).verdict(jobs)
    assert note == "Exact beats coarse. Not tested here: fewer than two prompts have both videos"


@pytest.mark.parametrize(("options", "number"), [({"threshold": 0.7}, 0), ({"method": "flowcache_fast"}, 2)])
def test_a_claim_names_one_setting(jobs, options, number):
    with pytest.raises(BadInput, match=f"fits {number} of the experiment's settings"):
        the_one(jobs, options)
