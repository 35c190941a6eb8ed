"""The linear forecast: exact on a line, and damped between that and holding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowcache.forecast.base import Point
from flowcache.forecast.hold import Hold
from flowcache.forecast.linear import Linear
from flowcache.reuse.base import Decision
from flowcache.sampler import sample
from flowcache.schedule import Row
from tests.methods import by_row, every_k
from tests.models import magi_goldens, skyreels_goldens


def line(t: float) -> Tensor:
    return torch.tensor([1.0, -2.0]) + t * torch.tensor([3.0, 0.5])


def points(*times: float) -> list[Point]:
    return [Point(t, line(t)) for t in times]


@pytest.mark.parametrize("t", [0.3, 0.25, 0.1, 1.0])
def test_a_line_is_forecast_exactly_over_times_of_any_spacing(t):
    torch.testing.assert_close(Linear().predict(t, points(0.25, 0.2)), line(t), atol=1e-6, rtol=0)
    torch.testing.assert_close(Linear().predict(900 - 100 * t, points(800, 900)), line(900 - 100 * t))


def test_damping_goes_from_holding_to_the_whole_line():
    known = points(0.25, 0.2)
    assert Linear(damping=0.0).predict(0.3, known) is known[0].output
    half = Linear(damping=0.5).predict(0.3, known)
    torch.testing.assert_close(half, (line(0.25) + line(0.3)) / 2, atol=1e-6, rtol=0)


def test_one_point_and_two_of_one_time_are_held():
    known = points(0.25)
    assert Linear().predict(0.3, known) is known[0].output
    twice = [Point(999, line(1.0)), Point(999, line(2.0))]
    assert Linear().predict(990, twice) is twice[0].output


@pytest.mark.parametrize("damping", [-0.1, 1.5, float("nan"), "half", True])
def test_what_is_no_damping_is_refused(damping):
    with pytest.raises(ValueError, match=r"damping=.* must be a number from 0 to 1"):
        Linear(damping=damping)


def test_a_velocity_linear_in_time_is_followed_to_rounding_where_every_other_step_is_skipped(monkeypatch):
    """Design's first invariant: an exact forecast reproduces vanilla. One chunk, v(t) = a + b t, on MAGI-1's grid."""

    def run(method):
        generation = magi_goldens.small_generation(method, num_chunks=1)
        a, b = torch.randn(2, *generation.latents.shape, generator=torch.Generator().manual_seed(1))

        def guided(row: Row, passes) -> dict[int, Tensor]:
            return {0: a + b * row.oldest.t}

        generation._guidance_1 = guided
        return magi_goldens.latents_of(generation)

    def every_other(row: Row) -> Decision:
        return Decision(row.chunks if row.index < 2 or row.index % 2 else ())

    vanilla = run(by_row(lambda row: Decision(row.chunks)))
    torch.testing.assert_close(run(by_row(every_other, forecast=Linear())), vanilla, atol=1e-5, rtol=0)
    held = run(by_row(every_other, forecast=Hold()))
    assert (held - vanilla).abs().max() > 1e-2


@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens], ids=["magi", "skyreels"])
def test_every_model_takes_it_and_another_video_comes_out(goldens):
    held, forecast = (
        goldens.latents_of(goldens.small_generation(every_k(every=3, warmup_steps=2, forecast=part)))
        for part in (Hold(), Linear())
    )
    undamped = goldens.latents_of(
        goldens.small_generation(every_k(every=3, warmup_steps=2, forecast=Linear(damping=0.0)))
    )
    assert torch.equal(held, undamped)
    assert forecast.isfinite().all()
    assert not torch.allclose(held, forecast, atol=1e-4)


@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens], ids=["magi", "skyreels"])
def test_what_forecasts_keep_is_reported(goldens):
    generations = [
        goldens.small_generation(every_k(every=2, warmup_steps=1, forecast=part)) for part in (Hold(), Linear())
    ]
    for generation in generations:
        list(sample(generation))
    held, twice = (generation.forecast_bytes_peak for generation in generations)
    assert held < twice <= 2 * held
    assert [generation.forecast_from for generation in generations] == [1, 2]
