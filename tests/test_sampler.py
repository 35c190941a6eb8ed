"""The one loop: what must be equal to what, bit for bit, and when chunks come out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import zip_longest

import pytest
import torch
from torch import Tensor

from flowcache.clock import SectionClock
from flowcache.forecast.hold import Hold
from flowcache.forecast.linear import Linear
from flowcache.method import Method
from flowcache.models.magi.attention import Member
from flowcache.models.magi.generation import MagiGeneration
from flowcache.reuse.base import Decision
from flowcache.reuse.chunkwise import Chunkwise
from flowcache.reuse.controlled import Controlled
from flowcache.reuse.distance import ChunkDistance
from flowcache.reuse.placed import Placed
from flowcache.reuse.replay import Replay
from flowcache.sampler import IdlePart, generate, sample
from flowcache.schedule import Row, Schedule
from flowcache.trace import Trace
from tests.methods import by_row, chunkwise, every_k, method, scope, uniform, vanilla
from tests.models.magi_goldens import GUIDANCE_3, golden_dit, latents_of, small_generation

REUSING = chunkwise(threshold=0.1, warmup_steps=2)
SETTINGS = {
    "plain": {},
    "guidance 3": GUIDANCE_3,
    "continuation": {"prefix_frames": 8},
    "short look-back": {"noise2clean_kvrange": (3, 2, 2, 1), "clean_chunk_kvrange": 1},
    "one chunk": {"num_chunks": 1},
    "more chunks than the window": {"num_chunks": 6},
}


@cache
def vanilla_latents(setting: str) -> Tensor:
    return latents(vanilla(), **SETTINGS[setting])


def latents(method: Method, trace: Trace | None = None, **settings) -> Tensor:
    return latents_of(small_generation(method, **settings), trace)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    "method",
    [
        chunkwise(threshold=0.0, warmup_steps=0),
        chunkwise(threshold=0.0, warmup_steps=0, distance="latent", last_step="global"),
        every_k(every=1, warmup_steps=0),
        scope(repeat_threshold=0.0, threshold=0.0, most_forecasts=5, warmup_steps=0, forecast=Linear()),
        uniform(threshold=0.0, warmup_steps=0),
        method(Placed(share=1.0), forecast=Linear(correction=2)),
        method(Controlled(share=1.0, first_ratio=1.0), forecast=Linear(correction=2)),
    ],
    ids=["flowcache", "flowcache latent global", "every_k", "scope", "teacache", "placed", "controlled"],
)
def test_a_method_that_never_reuses_is_vanilla_bit_for_bit(method, setting):
    assert torch.equal(latents(method, **SETTINGS[setting]), vanilla_latents(setting))


@pytest.mark.parametrize("quantity", ["velocity", "displacement"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_replaying_recorded_decisions_gives_the_same_latents_bit_for_bit(setting, quantity):
    method = chunkwise(threshold=0.1, warmup_steps=2, forecast=Hold(quantity=quantity))
    trace, again = Trace(), Trace()
    expected = latents(method, trace, **SETTINGS[setting])
    assert {entry.action for entry in trace.entries} == {"compute", "reuse"}
    replayed = replace(method, reuse=Replay(computed=trace.computed_rows()))
    assert torch.equal(latents(replayed, again, **SETTINGS[setting]), expected)
    assert again.computed_rows() == trace.computed_rows()
    assert again.work == trace.work
    assert not torch.equal(vanilla_latents(setting), expected)


@pytest.mark.parametrize("setting", ["plain", "guidance 3", "continuation"])
def test_two_generations_in_a_row_on_one_network_are_equal(setting):
    first, second = (latents(REUSING, **SETTINGS[setting]) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, latents(REUSING, seed=1, **SETTINGS[setting]))


def test_generations_that_take_turns_do_not_disturb_each_other():
    methods = [REUSING, vanilla(), uniform(threshold=0.05, warmup_steps=1)]
    alone = [latents(method, seed=seed) for seed, method in enumerate(methods)]
    generations = [small_generation(method, seed=seed) for seed, method in enumerate(methods)]
    runs = [sample(generation) for generation, method in zip(generations, methods, strict=True)]
    for _ in zip_longest(*runs):
        pass
    for generation, expected in zip(generations, alone, strict=True):
        assert torch.equal(generation.latents, expected)


def test_a_generation_leaves_its_inputs_alone():
    method = vanilla()
    first, second = small_generation(method, prefix_frames=8), small_generation(method, prefix_frames=8)
    noise, prefix = first.latents.clone(), first.prefix.clone()
    latents_of(first)
    assert torch.equal(first.prefix, prefix)
    assert torch.equal(second.latents, noise)


def test_a_consumer_may_stop_early():
    run = sample(small_generation(REUSING))
    chunk, _ = next(run)
    run.close()
    assert chunk == 0
    assert torch.equal(latents(REUSING), latents(REUSING))


@pytest.mark.parametrize("compute", [(1, 0), (0, 0), (0, 5)], ids=["newest first", "twice", "not active"])
def test_a_decision_about_other_than_active_chunks_oldest_first_is_refused(compute):
    generation = small_generation(by_row(lambda row: Decision(compute if len(row.chunks) > 1 else row.chunks)))
    with pytest.raises(ValueError, match=rf"ByRow wants chunks \({compute[0]}, {compute[1]}\) computed .*: \(0, 1\)"):
        list(sample(generation))


@pytest.mark.parametrize("setting", SETTINGS)
def test_chunks_come_out_in_order_before_any_later_row_runs(setting):
    generation = small_generation(REUSING, **SETTINGS[setting])
    rows: list[int] = []
    emitted = []
    for chunk, latent in sample(generation, observe=lambda row, _: rows.append(row.index)):
        assert chunk in generation.schedule.rows[rows[-1]].finished
        assert rows == list(range(rows[-1] + 1))
        assert latent.shape == (16, 6, 4, 4)
        emitted.append((chunk, latent))
    assert [chunk for chunk, _ in emitted] == list(
        range(generation.schedule.prefix_chunks, generation.schedule.num_chunks)
    )
    assert rows == list(range(len(generation.schedule.rows)))
    for chunk, latent in emitted:
        assert torch.equal(latent, generation.latents[0, :, 6 * chunk : 6 * chunk + 6])


def test_the_observer_sees_every_row_with_its_decision():
    seen, trace = [], Trace()
    generation = small_generation(REUSING)
    for _ in sample(generation, trace, observe=lambda row, decision: seen.append((row, decision))):
        pass
    assert tuple(row for row, _ in seen) == generation.schedule.rows
    assert [list(decision.compute) for _, decision in seen] == trace.computed_rows()


def every_other(row: Row, repeat: bool) -> Decision:
    """Of a row's chunks by their own steps: the others repeat, or take their forecast."""
    computed = tuple(step.chunk for step in row.steps if step.step < 2 or step.step % 2)
    return Decision(computed, repeat=tuple(chunk for chunk in row.chunks if chunk not in computed) if repeat else ())


@pytest.mark.parametrize(
    ("repeat", "forecast", "action"),
    [(False, Hold(), "reuse"), (True, Hold(), "reuse"), (True, Linear(), "reuse"), (False, Linear(), "forecast")],
)
def test_the_trace_tells_forecasts_from_outputs_taken_once_more(repeat, forecast, action):
    latents(by_row(lambda row: every_other(row, repeat), uses=("repeat",), forecast=forecast), trace := Trace())
    assert {entry.action for entry in trace.entries} == {"compute", action}
    assert {entry.repeated for entry in trace.entries if entry.action == action} == {repeat}
    assert not any(entry.repeated for entry in trace.entries if entry.action == "compute")


def test_replaying_repeats_too():
    method = by_row(lambda row: every_other(row, row.index % 4 == 0), uses=("repeat",), forecast=Linear())
    trace, again = Trace(), Trace()
    expected = latents(method, trace)
    assert {entry.action for entry in trace.entries} == {"compute", "reuse", "forecast"}
    replay = Replay(computed=trace.computed_rows(), repeated=trace.repeated_rows())
    assert torch.equal(latents(replace(method, reuse=replay), again), expected)
    assert again.entries == trace.entries
    forgetful = replace(method, reuse=Replay(computed=trace.computed_rows()))
    assert not torch.equal(latents(forgetful), expected)


class NotANumber(Chunkwise):
    """Chunkwise reuse whose distances are all NaN."""

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        broken = {chunk: ChunkDistance(float("nan"), d.magnitude) for chunk, d in distances.items()}
        return super().decide(row, broken, schedule)


def test_distances_that_are_not_numbers_compute():
    trace = Trace()
    assert torch.equal(latents(method(NotANumber(threshold=1e9, warmup_steps=0)), trace), latents(vanilla()))
    assert trace.computed_fraction == 1.0


def only_velocity(generation: MagiGeneration) -> Tensor:
    """Run to the end; what chunk 0 computed last, velocity or displacement."""
    computed: list[Tensor] = []
    for _ in sample(generation, observe=lambda *_: computed.append(generation.velocity(0))):
        pass
    return computed[-1]


def test_reusing_the_velocity_takes_the_steps_own_length():
    """One chunk whose only forward is the first: x_T = x_0 + v (t_T - t_0), in steps of any length."""

    def only_the_first(row: Row) -> Decision:
        return Decision(row.chunks if row.index == 0 else ())

    generation = small_generation(by_row(only_the_first), num_chunks=1)
    noise = generation.latents.clone()
    velocity = only_velocity(generation)
    torch.testing.assert_close(generation.latents, noise + velocity, atol=1e-5, rtol=0)

    displacement = by_row(only_the_first, forecast=Hold(quantity="displacement"))
    published = small_generation(displacement, num_chunks=1)
    step = only_velocity(published)
    torch.testing.assert_close(published.latents, noise + 8 * step, atol=1e-5, rtol=0)
    first_step = published.schedule.rows[0].oldest
    torch.testing.assert_close(step, velocity * (first_step.t_next - first_step.t))


def test_held_chunks_do_not_move_and_isolated_ones_see_only_themselves():
    rule = lambda row: Decision(row.chunks[-1:], held=row.chunks[:-1], isolated=row.chunks[-1:])  # noqa: E731
    method = by_row(rule, uses=("held", "isolated"))
    trace = Trace()
    generation, alone = small_generation(method, num_chunks=2), small_generation(method, num_chunks=2)
    run = sample(generation, trace, observe=lambda row, _: moved.append(generation.latents.clone()))
    moved: list[Tensor] = []
    list(run)
    first_shared = next(row.index for row in generation.schedule.rows if len(row.chunks) == 2)
    assert torch.equal(moved[first_shared][:, :, :6], moved[first_shared - 1][:, :, :6])
    assert not torch.equal(moved[first_shared][:, :, 6:], moved[first_shared - 1][:, :, 6:])
    held = [entry for entry in trace.entries if entry.action == "held"]
    assert {(entry.row, entry.chunk) for entry in held} == {
        (row.index, 0) for row in generation.schedule.rows if len(row.chunks) == 2
    }
    # The second chunk's first velocity is that of a forward in which it sees itself only.
    dit, second = golden_dit("mlp_base"), slice(6, 12)
    lone = Member(1, alone.captions[1], alone=True)
    expected = dit(alone.latents[:, :, second], dit.gates(torch.zeros(1, 1)), [lone])
    t_next = generation.schedule.rows[0].oldest.t_next
    torch.testing.assert_close(
        moved[first_shared][:, :, second], alone.latents[:, :, second] + t_next * expected, atol=1e-5, rtol=0
    )


def test_the_clock_counts_every_section_once_and_no_time_twice(monkeypatch):
    ticks = iter(range(10_000))
    monkeypatch.setattr("flowcache.clock.time.perf_counter", lambda: next(ticks))
    clock = SectionClock("cpu")
    generation = small_generation(REUSING)
    list(sample(generation, clock=clock))
    rows = len(generation.schedule.rows)
    # Every section is one tick long: start and every compute, every decision, before and after every forward.
    assert clock.seconds() == {"transformer": rows + 1, "policy": rows, "scheduler": 2 * rows}


def test_a_section_within_another_is_taken_out_of_it(monkeypatch):
    times = iter([0, 1, 4, 10])  # outer begins, inner begins and ends, outer ends
    monkeypatch.setattr("flowcache.clock.time.perf_counter", lambda: next(times))
    clock = SectionClock("cpu")
    with clock("outer"), clock("inner"):
        pass
    assert clock.seconds() == {"inner": 3, "outer": 7}


class FakeModel:
    """Records how it is asked and decodes a chunk to as many frames as it is told."""

    def __init__(self, frames: Sequence[int]) -> None:
        self.frames, self.asked = frames, None

    def generation(self, prompt: str, num_frames: int, method: Method, seed: int, **options):
        self.asked = (prompt, num_frames, method, seed, options)
        generation = small_generation(method, seed=seed)
        generation.decode = lambda chunk, latent: torch.full((self.frames[chunk], 2, 2, 3), chunk, dtype=torch.uint8)
        return generation


def test_generate_yields_the_frames_of_each_chunk_as_it_finishes():
    model, trace, clock = FakeModel([24, 24, 24]), Trace(), SectionClock("cpu")
    frames = generate(model, "a cat", 72, REUSING, seed=7, trace=trace, clock=clock, num_steps=8)
    assert isinstance(frames, Iterator)
    assert [int(piece[0, 0, 0, 0]) for piece in frames] == [0, 1, 2]
    assert model.asked == ("a cat", 72, REUSING, 7, {"num_steps": 8})
    assert len(trace.entries) == 3 * 8
    assert set(clock.seconds()) == {"text", "transformer", "policy", "scheduler", "vae"}


def test_generate_skips_chunks_without_new_frames():
    pieces = list(generate(FakeModel([0, 24, 16]), "a cat", 40, REUSING))
    assert [len(piece) for piece in pieces] == [24, 16]


def test_a_chunk_that_is_not_finite_is_refused(monkeypatch):
    generation = small_generation(vanilla())
    finish = generation.finish
    monkeypatch.setattr(generation, "finish", lambda chunk: finish(chunk) / (0 if chunk == 1 else 1))
    finished = []
    with pytest.raises(FloatingPointError, match=r"chunk 1 holds NaN or infinity.*check the checkpoint"):
        finished.extend(chunk for chunk, _ in sample(generation))
    assert finished == list(range(generation.schedule.num_chunks))  # it is told at the end, where waiting is no loss


def test_keys_that_are_kept_though_they_cannot_be_scored_are_told():
    method = chunkwise(threshold=0.0, warmup_steps=0, budget="1 chunk")
    latents(method, trace := Trace())
    assert trace.kv_unusable_kept == 0
    generation = small_generation(method)

    def blank(row: Row, decision: Decision) -> None:
        for branch in generation.caches:
            branch._store._keys.zero_()

    with pytest.warns(UserWarning, match="had to keep [0-9]+ keys that are NaN, infinite or zero"):
        list(sample(generation, trace, observe=blank))
    assert trace.kv_unusable_kept > 0


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (chunkwise(threshold=0.0, warmup_steps=0), "Chunkwise skipped nothing: every chunk computed in every step"),
        (by_row(lambda row: Decision(row.chunks if row.index == 0 else ())), "ByRow skipped all it could"),
        (by_row(lambda row: Decision(row.chunks if row.index == 0 else ()), forecast=Linear()), "Linear only held"),
        (
            by_row(lambda row: every_other(row, repeat=True), uses=("repeat",), forecast=Linear()),
            "Linear forecast nothing: every chunk that was skipped took its last output once more",
        ),
        (vanilla(budget="8 chunks"), "the KV budget of 8 chunks dropped nothing"),
    ],
    ids=["nothing skipped", "everything skipped", "only held", "only repeated", "nothing dropped"],
)
def test_a_part_without_effect_is_said_and_kept_in_the_trace(method, told):
    trace = Trace()
    with pytest.warns(IdlePart, match=told):
        latents(method, trace, num_chunks=1)
    assert any(remark.startswith(told) for remark in trace.remarks)


def test_parts_that_had_an_effect_are_not_remarked_on():
    trace = Trace()
    latents(chunkwise(threshold=0.1, warmup_steps=2, budget="1 chunk", forecast=Linear()), trace, num_chunks=5)
    assert trace.remarks == []
    latents(by_row(lambda row: every_other(row, repeat=True), uses=("repeat",)), trace := Trace())
    assert trace.remarks == []  # a forecast that holds is the same
    latents(vanilla(), trace := Trace())
    assert trace.remarks == []  # it is there to compute everything
