"""X-Cache's gate: which steps it skips, by hand, and what a skipped one takes on every model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from baselines.from_before import FromBefore
from baselines.x_cache import XCache
from eval.flops import ExecutedFlops, check
from experiments.job.compose import named_method
from flowcache.method import Method
from flowcache.reuse.distance import ChunkDistance
from flowcache.reuse.replay import Replay
from flowcache.sampler import sample
from flowcache.schedule import Schedule, rolling_schedule, sequential_schedule
from flowcache.trace import Trace
from tests.forecast.test_history import DeviceReads, HostReads
from tests.methods import vanilla
from tests.models import magi_goldens, skyreels_goldens
from tests.models.wan_goldens import latents_of, small_generation

UNIT = 1.0 - 1e-8  # a magnitude at which the guard against 0/0 leaves deviations exact
OPTIONS = {
    "fingerprint_tokens": 32,
    "least_cosine": 0.9,
    "cosine_margin": 0.05,
    "cosine_rate": 0.5,
    "most_deviation": 1.0,
    "most_skips": 9,
    "warmup_chunks": 1,
    "warmup_steps": 1,
}
OPEN = OPTIONS | {"least_cosine": -1.0, "cosine_margin": 2.0, "most_deviation": 1e9}
TIMES = (1000.0, 750.0, 500.0, 250.0)
ROLLING = {"rolling": True, "window_frames": 15, "sink_frames": 3, "num_frames": 21}
SETTINGS = {
    "self forcing": {},
    "window and sink": {"window_frames": 9, "sink_frames": 3, "num_frames": 18},
    "first steps": {"block_frames": 1, "num_frames": 5, "first_steps": (1000, 750, 500, 250, 100)},
    "first frame alone": {"first_frame_alone": True, "num_frames": 10},
    "continuation": {"prefix_frames": 6, "window_frames": 9, "num_frames": 15},
    "new prompt": {"prompt_starts": (6,), "window_frames": 9, "sink_frames": 3, "num_frames": 15},
    "rolling": ROLLING,
    "unipc": {"solver": "unipc", "num_steps": 6, "num_frames": 9},
    "unipc with guidance": {"solver": "unipc", "num_steps": 6, "num_frames": 9, "guidance_scale": 3.0},
}


def x_cache(**options) -> Method:
    return Method(reuse=XCache(**options), forecast=FromBefore())


def skipped(policy: XCache, schedule: Schedule, cosines, deviation: float = 0.0) -> list[tuple[int, int]]:
    """(chunk, step) of all that skip; ``cosines`` of a chunk are those of its steps."""
    found = []
    for row in schedule.rows:
        distances = {s.chunk: ChunkDistance(deviation, UNIT, cosines(s.chunk, s.step)) for s in row.steps}
        compute = policy.decide(row, distances, schedule).compute
        found += [(s.chunk, s.step) for s in row.steps if s.chunk not in compute]
    return found


def chunks_that_skip(cosines: list[float], deviation: float = 0.0, **options) -> list[int]:
    """Of chunks of two steps, by the cosines of their second ones, the first chunk's left out."""
    schedule = sequential_schedule(1 + len(cosines), TIMES[:2])
    found = skipped(XCache(**OPTIONS | options), schedule, lambda chunk, _: [math.nan, *cosines][chunk], deviation)
    assert {step for _, step in found} <= {1}
    return [chunk for chunk, _ in found]


@pytest.mark.parametrize(
    ("cosines", "options", "expected"),
    [
        # The least cosine may be met; the first one that is seen has no usual one to fall below.
        ([0.9, 0.875, 0.9], {}, [1, 3]),
        # The usual one is 1, 1, then 0.9685, then 0.9435, and the margin is below it.
        ([1.0, 1.0, 0.937, 0.92], {}, [1, 2, 4]),
        # It follows at once, or never.
        ([1.0, 0.949, 0.91], {"cosine_rate": 1.0}, [1, 3]),
        ([1.0, 0.949, 0.96], {"cosine_rate": 0.0}, [1, 3]),
        # What is no number computes, and is forgotten.
        ([1.0, math.nan, 1.0], {}, [1, 3]),
        # Two chunks in a row, and one that computes; what the gate computes counts too.
        ([1.0] * 6, {"most_skips": 2}, [1, 2, 4, 5]),
        ([1.0, 0.0, 0.96, 0.96, 0.96], {"most_skips": 2}, [1, 3, 4]),
        ([1.0] * 3, {"most_skips": 0}, []),
        ([1.0] * 3, {"warmup_chunks": 3}, [3]),
        ([1.0] * 3, {"warmup_chunks": 0}, [1, 2, 3]),
        ([1.0] * 3, {"most_deviation": 0.0}, []),
        ([1.0] * 3, {"warmup_steps": 2}, []),
    ],
)
def test_chunks_that_skip_by_hand(cosines, options, expected):
    assert chunks_that_skip(cosines, **options) == expected


def test_the_deviation_must_be_below_its_bound():
    assert chunks_that_skip([1.0], deviation=0.5, most_deviation=0.75) == [1]
    assert chunks_that_skip([1.0], deviation=0.75, most_deviation=0.75) == []


def test_every_step_has_its_own_usual_cosine_and_its_own_count():
    cosines = {1: 1.0, 2: 0.92, 3: 0.5}
    schedule = rolling_schedule(4, TIMES)
    found = skipped(XCache(**OPTIONS | {"most_skips": 2}), schedule, lambda _, step: cosines.get(step, math.nan))
    assert sorted(found) == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_what_was_not_measured_computes():
    schedule = sequential_schedule(3, TIMES)
    policy = XCache(**OPEN)
    assert all(policy.decide(row, {}, schedule).compute == row.chunks for row in schedule.rows)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("closed", [{"most_deviation": 0.0}, {"most_skips": 0}], ids=lambda each: next(iter(each)))
def test_a_gate_that_never_opens_is_vanilla_bit_for_bit(setting, closed):
    with pytest.warns(UserWarning, match="XCache skipped nothing"):
        latents = latents_of(small_generation(x_cache(**OPEN | closed), **SETTINGS[setting]))
    assert torch.equal(latents, latents_of(small_generation(vanilla(), **SETTINGS[setting])))


def skips_of(setting: str, **options) -> set[tuple[int, int]]:
    trace = Trace()
    latents_of(small_generation(x_cache(**OPEN | options), **SETTINGS[setting]), trace)
    assert all(entry.flops == 0 for entry in trace.entries if entry.action == "forecast")
    assert {entry.action for entry in trace.entries} == {"compute", "forecast"}
    return {(entry.chunk, entry.step) for entry in trace.entries if entry.action == "forecast"}


def of(chunks, steps) -> set[tuple[int, int]]:
    return {(chunk, step) for chunk in chunks for step in steps}


def test_a_gate_that_always_opens_skips_all_but_first_chunks_and_first_steps():
    assert skips_of("self forcing") == of((1, 2, 3), (1, 2, 3))
    assert skips_of("self forcing", most_skips=2) == of((1, 2), (1, 2, 3))
    assert skips_of("self forcing", warmup_steps=3) == of((1, 2, 3), (3,))
    assert skips_of("rolling") == of(range(1, 7), (1, 2, 3))
    assert skips_of("unipc") == of((1, 2), range(1, 6))
    # Chunks 0 and 1 are given; chunk 2 has nothing before it.
    assert skips_of("continuation") == of((3, 4), (1, 2, 3))
    # Chunk 1 is larger than the one before it.
    assert skips_of("first frame alone") == of((2, 3), (1, 2, 3))
    # Chunk 2 has a new prompt.
    assert skips_of("new prompt") == of((1, 3, 4), (1, 2, 3))
    # The first chunk has one step more, after those that all have.
    assert skips_of("first steps") == of((1, 2, 3, 4), (1, 2, 3))


def test_a_skipped_step_adds_what_the_last_computed_chunk_changed_by():
    """By hand, of the estimates of the clean latent: the noise on top of them makes no difference to it."""
    generation, seen = small_generation(x_cache(**OPEN), num_frames=9), {}
    history, update = generation._history, generation._history.update

    def recorded(step, output: Tensor, latent: Tensor) -> None:
        seen[step.chunk, step.step] = output.clone()
        update(step, output, latent)

    history.update = recorded
    chunks = [latent for _, latent in sample(generation)]
    assert set(seen) == of((0,), range(4)) | of((1, 2), (0,))
    for chunk in (1, 2):
        expected = seen[chunk, 0] + (seen[0, 3] - seen[0, 0])
        torch.testing.assert_close(chunks[chunk], expected[0], atol=1e-5, rtol=0)


def test_what_is_compared_is_the_clean_latent_without_its_noise():
    trace, estimates = Trace(), {}
    generation = small_generation(x_cache(**OPEN | {"most_skips": 0}))
    advance = generation.advance

    def recorded(row, decision) -> None:
        (step,) = row.steps
        estimates[step.chunk, step.step] = generation.output(step.chunk).clone()
        advance(row, decision)

    generation.advance = recorded
    with pytest.warns(UserWarning, match="XCache skipped nothing"):
        latents_of(generation, trace)
    for entry in trace.entries:
        if entry.chunk > 0 and entry.step > 0:
            now, before = (estimates[chunk, entry.step - 1][0] for chunk in (entry.chunk, entry.chunk - 1))
            now, before = (torch.cat([x.flatten(1), x.flatten(1).mean(1, keepdim=True)], 1) for x in (now, before))
            every_token = torch.cosine_similarity(now, before, dim=0)  # the fingerprint has some of them
            assert entry.cosine >= float(every_token.min()) - 1e-6
            assert entry.cosine <= float(every_token[-1]) + 1e-6
            assert entry.distance > 0
        elif entry.chunk > 0:
            assert math.isnan(entry.cosine)
        else:
            assert entry.cosine is None


@pytest.mark.parametrize("setting", SETTINGS)
def test_counts_are_what_executes_and_a_replay_gives_the_same(setting):
    method = x_cache(**OPEN | {"most_skips": 2})
    generation, trace = small_generation(method, **SETTINGS[setting]), Trace()
    with ExecutedFlops() as executed:
        latents = torch.cat([latent for _, latent in sample(generation, trace, executed.clock)], dim=1)
    assert check(executed, trace) == len(generation.schedule.rows)
    assert executed.by_section()["transformer"].flops == trace.flops
    replayed, again = replace(method, reuse=Replay(computed=trace.computed_rows())), Trace()
    assert torch.equal(latents_of(small_generation(replayed, **SETTINGS[setting]), again), latents)
    assert again.work == trace.work


@pytest.mark.parametrize("setting", ["self forcing", "rolling", "unipc with guidance"])
def test_the_host_reads_once_a_row_where_there_is_something_to_compare(setting):
    trace = Trace()
    generation, counts = small_generation(x_cache(**OPEN), **SETTINGS[setting]), []
    with HostReads() as reads, DeviceReads() as below:

        def observe(row, decision) -> None:
            counts.append((reads.count, below.count))
            reads.count = below.count = 0

        list(sample(generation, trace, observe=observe))
    measured = {entry.row for entry in trace.entries if entry.distance is not None}
    assert counts == [(int(row.index in measured), 0) for row in generation.schedule.rows]


def test_generations_in_turns_are_equal_to_each_alone():
    generations = [small_generation(x_cache(**OPEN), seed=seed) for seed in (0, 1)]
    turns = [[], []]
    for results in zip(*map(sample, generations), strict=True):
        for turn, (_, latent) in zip(turns, results, strict=True):
            turn.append(latent)
    for seed, turn in enumerate(turns):
        assert torch.equal(torch.cat(turn, dim=1), latents_of(small_generation(x_cache(**OPEN), seed=seed)))


def test_memory_is_that_of_two_chunks_outputs_however_long_the_video():
    peaks = []
    for frames in (9, 18):
        trace = Trace()
        generation = small_generation(x_cache(**OPEN), num_frames=frames)
        latents_of(generation, trace)
        peaks.append(trace.forecast_bytes_peak)
        assert generation._history.bytes <= 4 * generation._latent(0).nbytes
    assert peaks[0] == peaks[1] == 8 * generation._latent(0).nbytes


@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens], ids=["magi", "skyreels"])
def test_on_models_whose_chunks_run_together(goldens):
    method, trace, again = x_cache(**OPEN), Trace(), Trace()
    latents = goldens.latents_of(goldens.small_generation(method), trace)
    assert latents.isfinite().all()
    skips = {(entry.chunk, entry.step) for entry in trace.entries if entry.action == "forecast"}
    first = {entry.chunk for entry in trace.entries if entry.step > 0} - {chunk for chunk, _ in skips}
    assert skips
    assert min(entry.chunk for entry in trace.entries) in first
    replayed = replace(method, reuse=Replay(computed=trace.computed_rows()))
    assert torch.equal(goldens.latents_of(goldens.small_generation(replayed), again), latents)
    closed = goldens.small_generation(x_cache(**OPEN | {"most_deviation": 0.0}))
    with pytest.warns(UserWarning, match="XCache skipped nothing"):
        careful = goldens.latents_of(closed)
    assert torch.equal(careful, goldens.latents_of(goldens.small_generation(vanilla(attention="cached"))))


def test_attention_without_a_cache_is_refused():
    with pytest.raises(ValueError, match="XCache computes only some of a row's chunks; choose attention='cached'"):
        skyreels_goldens.small_generation(replace(x_cache(**OPEN), attention="native"))


@pytest.mark.parametrize("model", ["magi", "skyreels"])
def test_the_method_composes_the_gate_with_what_the_chunk_before_changed(model):
    method, parts = named_method("x_cache", model, "embedded")
    assert isinstance(method.reuse, XCache)
    assert method.forecast == FromBefore()
    assert parts["forecast"] == "from_before"
    assert (method.reuse.fingerprint_tokens, method.reuse.least_cosine, method.reuse.cosine_margin) == (32, 0.97, 0.02)
    assert method.reuse.cosine_rate == 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fingerprint_tokens": 0}, "fingerprint_tokens=0 must be a whole number of at least 1"),
        ({"most_skips": -1}, "most_skips=-1 must be a whole number of at least 0"),
        ({"warmup_chunks": 1.5}, "warmup_chunks=1.5 must be a whole number of at least 0"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must be a whole number of at least 0"),
        ({"least_cosine": 1.5}, "least_cosine=1.5 must be a number from -1 to 1"),
        ({"least_cosine": math.nan}, "least_cosine=nan must be a number from -1 to 1"),
        ({"cosine_margin": -0.1}, "cosine_margin=-0.1 must be a finite number of at least 0"),
        ({"cosine_rate": 2}, "cosine_rate=2 must be a number from 0 to 1"),
        ({"most_deviation": math.inf}, "most_deviation=inf must be a finite number of at least 0"),
        ({"distance": "latent"}, "distance='latent' is unknown; choose 'clean' or 'embedded_latent'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        XCache(**OPTIONS | options)


def test_a_warmup_longer_than_the_chunk_is_refused():
    with pytest.raises(ValueError, match="warmup_steps=5 is more than the 4 steps of a chunk"):
        XCache(**OPTIONS | {"warmup_steps": 5}).check_schedule(sequential_schedule(2, TIMES))
