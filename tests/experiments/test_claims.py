"""A claim of the paper is held against the records, both ways."""

import pytest

from experiments.job.errors import BadInput
from experiments.show.claims import Claim, notes, the_one
from tests.experiments.made_records import made

EXACT, COARSE = (
    {"method": "flowcache_fast", "reuse.threshold": 0.0},
    {"method": "flowcache_fast", "reuse.threshold": 0.6},
)


@pytest.fixture
def jobs(small_job):
    thresholds = [small_job(f"reuse.threshold={t}", "num_prompts=6") for t in (0, 0.6)]
    return [small_job("method=vanilla", "num_prompts=6"), *thresholds]


def record_all(jobs, num_prompts=6):
    for job, share, metrics in ((jobs[1], 0.8, {"psnr": 50, "lpips": 0}), (jobs[2], 0.5, {"psnr": 30, "lpips": 0.6})):
        for place, prompt in enumerate(job.prompts[:num_prompts]):
            made(job, prompt, share, metrics={name: value + place / 10 for name, value in metrics.items()})


def test_a_claim_holds_or_goes_against_or_is_left_open(jobs):
    record_all(jobs)
    (note,) = notes([{"text": "Exact beats coarse.", "of": EXACT, "against": COARSE}], jobs)
    assert note.startswith("Exact beats coarse. Holds here: +20.00 dB PSNR (")
    assert note.endswith("paired, n 6), at 1.60 of the other's compute")
    assert "GOES AGAINST THE CLAIM here: -20.00" in Claim("Coarse beats exact.", COARSE, EXACT).verdict(jobs)
    assert "Neither borne out nor contradicted here: +0.00 dB" in Claim("Itself.", EXACT, EXACT).verdict(jobs)
    # A small loss may be claimed.
    note = Claim("Little is lost.", EXACT, EXACT, ahead=-0.5).verdict(jobs)
    assert "Holds here: +0.00 dB PSNR (+0.00 to +0.00, paired, n 6; claimed -0.50 or better)" in note
    # Of LPIPS less is better.
    note = Claim("Exact beats coarse.", EXACT, COARSE, "lpips", 0.5).verdict(jobs)
    assert "Holds here: -0.6000 LPIPS (-0.6000 to -0.6000, paired, n 6; claimed -0.5000 or better)" in note
    assert "GOES AGAINST" in Claim("Exact is far better.", EXACT, COARSE, "lpips", 0.7).verdict(jobs)
    assert "Holds here: +0.6000" in Claim("Coarse costs little.", COARSE, EXACT, "lpips", -0.7).verdict(jobs)
    assert "GOES AGAINST" in Claim("Coarse costs less.", COARSE, EXACT, "lpips", -0.5).verdict(jobs)


def test_few_prompts_tell_nothing(jobs):
    assert Claim("Exact beats coarse.", EXACT, COARSE).verdict(jobs) == (
        "Exact beats coarse. Not tested here: no prompt has both videos"
    )
    record_all(jobs, 5)
    assert Claim("Exact beats coarse.", EXACT, COARSE).verdict(jobs) == (
        "Exact beats coarse. Too few prompts to tell here: +20.00 dB PSNR (paired, n 5), at 1.60 of the other's compute"
    )


def test_a_metric_that_could_not_be_had_is_no_number(jobs):
    for job in jobs[1:]:
        made(job, job.prompts[0], 0.5, metrics={"lpips": None}, notes={"lpips": "no weights"})
    note = Claim("Exact beats coarse.", EXACT, COARSE, "lpips").verdict(jobs)
    assert note.endswith("Not tested here: no prompt has both videos")


@pytest.mark.parametrize(("options", "number"), [({"reuse.threshold": 0.7}, 0), ({"method": "flowcache_fast"}, 2)])
def test_a_claim_names_one_setting(jobs, options, number):
    with pytest.raises(BadInput, match=f"fits {number} of the experiment's settings"):
        the_one(jobs, options)
