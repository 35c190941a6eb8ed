"""The estimate before a sweep: measured seconds where there are any, else vanilla's, else vanilla's FLOPs."""

from dataclasses import replace

import pytest

from experiments.job.cli import compose_config
from experiments.job.job import make_job
from experiments.run.dry_run import count
from experiments.run.estimate import ASSUMED_RATES, Share, estimate, pairs_s, told
from tests.experiments.conftest import SMALL
from tests.experiments.made_records import made


@pytest.fixture
def jobs(small_job):
    return [small_job(*overrides) for overrides in (["method=vanilla"], ["reuse.threshold=0.1"], ["method=every_k"])]


def test_without_records_every_method_is_taken_as_vanilla_by_its_flops(jobs):
    config = compose_config([*SMALL, "method=vanilla"])
    assumed_s = count(config, make_job(config).method).trace.flops / ASSUMED_RATES["cpu"]
    assert estimate(jobs) == [
        Share("vanilla", 2, assumed_s, at_most=False, assumed=True),
        Share("flowcache_fast", 2, assumed_s, at_most=True, assumed=True),
        Share("every_k", 2, assumed_s, at_most=True, assumed=True),
    ]
    assert told(estimate(jobs), jobs[0]).endswith(
        "(a method with no finished video as vanilla, vanilla by its FLOPs at 0.03 TFLOP/s)"
    )


def test_measured_seconds_count_and_finished_videos_do_not(jobs):
    vanilla, flowcache, _ = jobs
    for prompt, seconds in zip(vanilla.prompts, (300.0, 500.0), strict=True):
        made(vanilla, prompt, latency_s=seconds)
    made(flowcache, flowcache.prompts[0], share=0.5, latency_s=100.0)
    shares = [
        Share("flowcache_fast", 1, 100.0, at_most=False, assumed=False),
        Share("every_k", 2, 400.0, at_most=True, assumed=False),
    ]
    assert estimate(jobs) == shares
    assert estimate([vanilla]) == []
    again = replace(vanilla, force=True)
    assert estimate([again]) == [Share("vanilla", 2, 400.0, at_most=False, assumed=False)]
    assert told(shares, replace(vanilla, device="cuda"), num_tasks=4) == (
        "estimate: 1 flowcache_fast of 100 s, 2 every_k of at most 400 s; at most 0.25 GPU-hours, 0.062 h on 4 tasks "
        "(a method with no finished video as vanilla, as measured)"
    )
    assert "; at most 0.12 hours (" in told(shares, replace(vanilla, workers=2))


def test_a_video_that_two_jobs_share_counts_once_and_each_seed_for_itself(jobs):
    vanilla = jobs[0]
    shares = estimate([vanilla, vanilla, replace(vanilla, seed=4)])
    assert [share.num_videos for share in shares] == [4]


def test_a_video_that_was_counted_before_is_left_out(jobs):
    vanilla, flowcache, _ = jobs
    seen = set()
    assert [share.num_videos for share in estimate([vanilla], seen)] == [2]
    assert [share.method_name for share in estimate([vanilla, flowcache], seen)] == ["flowcache_fast"]
    assert estimate(jobs[:2], seen) == []


def test_pairs_take_the_baseline_once_more_and_of_finished_videos_their_own_time(jobs):
    vanilla, flowcache, every_k = (replace(job, latency_pairs=1) for job in jobs)
    for prompt, seconds in zip(vanilla.prompts, (300.0, 500.0), strict=True):
        made(vanilla, prompt, latency_s=seconds)
    made(flowcache, flowcache.prompts[0], share=0.5, latency_s=100.0)
    # All were timed on another machine: vanilla's is taken anew, flowcache's too and beside it vanilla's, which is made
    # once more beside every_k's, that is still to be made.
    assert pairs_s([vanilla, flowcache, every_k]) == 400 + (100 + 400) + 400
    untimed = [replace(job, latency_pairs=0) for job in jobs]
    assert pairs_s(untimed) == 0
