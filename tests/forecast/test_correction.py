"""Skipped steps taken once more: exact where the output is a polynomial, with the solver's own history, and never
across a jump."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowcache.forecast.base import Point
from flowcache.forecast.correction import interpolate, interpolation_weights
from flowcache.forecast.history import OutputHistory
from flowcache.forecast.hold import Hold
from flowcache.forecast.linear import Linear
from flowcache.models.wan.unipc import noise_levels
from flowcache.reuse.base import Decision
from flowcache.sampler import sample
from flowcache.schedule import ChunkStep, Row, staged_schedule, timesteps
from flowcache.trace import Trace
from tests.methods import by_row, every_k, vanilla
from tests.models import magi_goldens, skyreels_goldens

GOLDENS = pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens], ids=["magi", "skyreels"])
CORRECTED = Linear(correction=2)


def path(t: float, degree: int) -> Tensor:
    return sum(torch.tensor([1.0, -2.0, 0.5]).roll(power) * t**power for power in range(degree + 1))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_polynomial_is_met_at_any_time_whatever_the_spacing(degree):
    points = [Point(t, path(t, degree)) for t in (0.9, 0.4, 0.35, 0.1)[: degree + 1]]
    for t in (0.2, 0.5, 0.8, 0.9):
        torch.testing.assert_close(interpolate(t, points), path(t, degree), atol=1e-5, rtol=0)
        assert sum(interpolation_weights(t, [point.t for point in points])) == pytest.approx(1)


def test_of_two_points_of_one_time_the_newer_counts():
    points = [Point(0.5, path(1.0, 1)), Point(0.5, path(9.0, 1)), Point(0.1, path(0.0, 1))]
    assert torch.equal(interpolate(0.3, points), interpolate(0.3, [points[0], points[2]]))


def history(forecast=CORRECTED, jumps=()) -> OutputHistory:
    return OutputHistory(forecast, jumps=lambda chunk: jumps)


def step(n: int, chunk: int = 0) -> ChunkStep:
    return ChunkStep(chunk, n, n / 8, (n + 1) / 8)


def run(kept: OutputHistory, computed: set[int], until: int) -> list[tuple[int, object]]:
    """Computes some of the steps from 0 on; what was to be corrected, with the step at which it was."""
    found = []
    for n in range(until + 1):
        if n in computed:
            kept.update(step(n), path(n / 8, 2), torch.empty(0))
            if (corrected := kept.take_corrected(0)) is not None:
                found.append((n, corrected))
        else:
            if kept.opens_gap(0):
                kept.open_gap(0, f"before {n}", 100)
            kept.predict(step(n))
    return found


def test_a_gap_is_given_back_once_with_its_state_and_the_outputs_it_should_have_had():
    found = run(history(), {0, 1, 4, 5, 7}, 7)
    assert [(n, state, [s.step for s, _ in skipped]) for n, (state, skipped) in found] == [
        (4, "before 2", [2, 3]),
        (7, "before 6", [6]),
    ]
    for _, (_, skipped) in found:
        for each, output in skipped:
            torch.testing.assert_close(output, path(each.t, 2), atol=1e-5, rtol=0)


def test_a_correction_that_nobody_asked_for_does_not_outlive_the_next_step():
    kept = history()
    for n in range(5):
        if n == 2:
            kept.open_gap(0, "before", 0)
            kept.predict(step(n))
        else:
            kept.update(step(n), path(n / 8, 2), torch.empty(0))
    assert kept.take_corrected(0) is None


def test_nothing_is_corrected_across_a_jump_and_what_was_before_it_is_forgotten():
    kept = history(jumps=(3,))
    assert run(kept, {0, 1, 4}, 4) == []
    assert torch.equal(kept.predict(step(5)), path(4 / 8, 2))  # one point is left: it is held


def test_without_correction_no_state_is_kept():
    kept = history(Linear())
    kept.update(step(0), path(0.0, 2), torch.empty(0))
    assert not kept.opens_gap(0)


def test_what_is_kept_is_counted_and_forgotten_with_its_chunk():
    kept = history()
    run(kept, {0, 1}, 3)
    assert kept.bytes == 2 * 3 * 4 + 100
    kept.drop(0)
    assert kept.bytes == 0
    run(kept, {0, 1}, 3)
    kept.clear()
    assert kept.bytes == 0


def test_a_limit_holds_a_forecast_back_in_its_own_direction():
    output = torch.tensor([3.0, -4.0, 0.0, 0.0])  # root mean square 2.5
    change = torch.tensor([0.0, 0.0, 5.0, 0.0])
    for limit, way in ((0.1, 0.5), (0.5, 2.5 / 2), (None, 5.0), (10.0, 5.0)):
        kept = OutputHistory(Linear(limit=limit))
        for n, value in enumerate((output - change, output)):
            kept.update(step(n), value, torch.empty(0))
        wanted = 5.0 if way == 5.0 else limit * 2.5 / 2.5 * 5.0
        torch.testing.assert_close(kept.predict(step(2)), output + change / 5.0 * wanted)
    still = OutputHistory(Linear(limit=0.1))
    for n in range(2):
        still.update(step(n), torch.zeros(3), torch.empty(0))
    assert torch.equal(still.predict(step(2)), torch.zeros(3))


@pytest.mark.parametrize(
    ("option", "message"),
    [({"limit": 0}, "limit=0 must be"), ({"limit": "far"}, "limit='far' must"), ({"correction": -1}, "correction=-1"),
     ({"correction": 1.5}, r"correction=1\.5 must be a whole number")],
)  # fmt: skip
def test_what_is_no_limit_and_no_order_is_refused(option, message):
    with pytest.raises(ValueError, match=message):
        Linear(**option)


# On the models.


def every_other(row: Row) -> Decision:
    """Whole rows; each chunk's first two steps, its last, and those at which it jumps are among them."""
    return Decision(row.chunks if row.oldest.step in (0, 1, 4, 6, 7) else ())


def test_magis_latents_are_vanillas_where_the_clean_estimate_is_a_line_over_time(monkeypatch):
    """A gap is guessed by holding, which is wrong, and corrected by a line, which is right."""

    def run(method):
        generation = magi_goldens.small_generation(method, num_chunks=1)
        a, b = torch.randn(2, *generation.latents.shape, generator=torch.Generator().manual_seed(1))

        def guided(row: Row, passes) -> dict[int, Tensor]:
            t = row.oldest.t
            return {0: (a + b * t - generation.latents) / (1 - t)}

        generation._guidance_1 = guided
        latents = {}
        for _ in sample(generation, observe=lambda row, _: latents.__setitem__(row.index, generation.latents.clone())):
            pass
        return latents

    expected = run(by_row(lambda row: Decision(row.chunks)))
    held = run(by_row(every_other, forecast=Hold(quantity="clean")))
    corrected = run(by_row(every_other, forecast=Hold(quantity="clean", correction=1)))
    for row in (4, 6):  # in the last one every estimate is where it leads
        torch.testing.assert_close(corrected[row], expected[row], atol=1e-5, rtol=0)
        assert (held[row] - expected[row]).abs().max() > 1e-3
    assert (corrected[5] - expected[5]).abs().max() > 1e-3  # not known yet


def test_skyreels_solver_goes_on_as_vanillas_where_the_clean_estimate_is_a_line_over_time(monkeypatch):
    """UniPC looks back on two estimates: they are corrected with the latent."""

    def run(method):
        generation = skyreels_goldens.small_generation(method, num_chunks=1, guidance_scale=1.0)
        a, b = torch.randn(2, *generation.latents.shape, generator=torch.Generator().manual_seed(1))
        levels, _ = noise_levels(generation.sampling.num_steps, generation.sampling.shift)

        def velocities(branch, caption, row: Row, decision: Decision, index: int, work) -> dict[int, Tensor]:
            if not decision.compute:
                return {}
            step = row.oldest
            clean = a + b * step.t / 1000
            return {0: (generation.latents - clean) / levels[step.step]}

        generation._run = velocities
        latents = {}
        for _ in sample(generation, observe=lambda row, _: latents.__setitem__(row.index, generation.latents.clone())):
            pass
        return latents

    last = max(run(by_row(lambda row: Decision(row.chunks))))

    def rule(row: Row) -> Decision:
        return Decision(row.chunks if row.oldest.step in (0, 1, 4, last) else ())

    expected = run(by_row(lambda row: Decision(row.chunks)))
    held = run(by_row(rule, forecast=Hold(quantity="clean")))
    corrected = run(by_row(rule, forecast=Hold(quantity="clean", correction=1)))
    torch.testing.assert_close(corrected[4], expected[4], atol=1e-4, rtol=1e-4)
    assert (held[4] - expected[4]).abs().max() > 1e-2


@GOLDENS
def test_a_policy_that_always_computes_is_vanilla_bit_for_bit_with_a_correction(goldens):
    forecast = Linear(correction=2)  # of the quantity that the model corrects
    expected = goldens.latents_of(goldens.small_generation(vanilla(attention="cached")))
    computed = every_k(every=1, warmup_steps=0, forecast=forecast)
    assert torch.equal(goldens.latents_of(goldens.small_generation(computed)), expected)


@GOLDENS
def test_a_correction_makes_another_video_keeps_a_state_and_says_where_it_had_no_effect(goldens):
    made, kept = {}, {}
    for order in (0, 1, 2):
        forecast = Linear(correction=order, quantity=None if goldens is magi_goldens else "clean")
        generation = goldens.small_generation(every_k(every=3, warmup_steps=2, forecast=forecast))
        made[order], kept[order] = goldens.latents_of(generation), generation.forecast_bytes_peak
        assert (generation.forecast_corrections > 0) == (order > 0)
    assert not torch.allclose(made[0], made[1], atol=1e-4)
    assert kept[0] < kept[1]
    trace = Trace()
    list(sample(goldens.small_generation(every_k(every=1, warmup_steps=0, forecast=CORRECTED)), trace))
    assert not any("corrected" in remark for remark in trace.remarks)  # nothing was skipped


def test_a_residual_of_each_branch_cannot_be_corrected():
    with pytest.raises(
        ValueError, match="correction=1 takes skipped steps again, which SkyReels-V2 cannot do of its r"
    ):
        skyreels_goldens.small_generation(
            every_k(every=3, warmup_steps=2, forecast=Hold(quantity="residual", correction=1))
        )


def test_a_schedule_knows_when_its_chunks_neighbours_finish():
    schedule = staged_schedule(5, timesteps(16))
    assert [schedule.events(chunk) for chunk in range(5)] == [
        {},
        {12: 1},
        {8: 2, 12: 1},
        {4: 3, 8: 2, 12: 1},
        {4: 3, 8: 2, 12: 1},
    ]
    assert [schedule.jumps(chunk) for chunk in range(3)] == [(), (12,), (12,)]
