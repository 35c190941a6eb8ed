"""The damped forecast: a line whose slope fades, between the linear forecast and holding."""

from __future__ import annotations

import math

import pytest
import torch

from flowcache.forecast.base import Point
from flowcache.forecast.damped import Damped
from flowcache.forecast.hold import Hold
from flowcache.forecast.linear import Linear
from tests.methods import every_k
from tests.models import magi_goldens, skyreels_goldens


def points(*times: float) -> list[Point]:
    return [Point(t, torch.tensor([1.0, -2.0]) + t * torch.tensor([3.0, 0.5])) for t in times]


@pytest.mark.parametrize(("newest", "before"), [(0.25, 0.2), (800.0, 900.0)])
def test_it_goes_as_far_of_the_last_change_as_the_formula_says(newest, before):
    known = points(newest, before)
    change = known[0].output - known[1].output
    for ahead in (0.5, 1.0, 4.0):
        for fade in (0.1, 2.0):
            expected = known[0].output + change * (1 - math.exp(-fade * ahead)) / fade
            forecast = Damped(fade=fade).predict(newest + ahead * (newest - before), known)
            torch.testing.assert_close(forecast, expected)


def test_it_lies_between_the_linear_forecast_and_holding():
    known = points(0.25, 0.2)
    linear = Linear().predict(0.4, known)
    torch.testing.assert_close(Damped(fade=1e-9).predict(0.4, known), linear)
    torch.testing.assert_close(Damped(fade=1e9).predict(0.4, known), known[0].output)
    far = Damped(fade=0.5).predict(100.0, known)
    torch.testing.assert_close(far, known[0].output + 2 * (known[0].output - known[1].output))


def test_one_point_and_two_of_one_time_are_held():
    known = points(0.25)
    assert Damped().predict(0.3, known) is known[0].output
    twice = [Point(999, torch.ones(2)), Point(999, torch.zeros(2))]
    assert Damped().predict(990, twice) is twice[0].output


@pytest.mark.parametrize("fade", [0, -1.0, math.inf, math.nan, "1", True, None])
def test_what_is_no_fade_is_refused(fade):
    with pytest.raises(ValueError, match=r"fade=.* must be a finite number above 0"):
        Damped(fade=fade)


@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens], ids=["magi", "skyreels"])
def test_every_model_takes_it_and_another_video_comes_out(goldens):
    held, linear, damped = (
        goldens.latents_of(goldens.small_generation(every_k(every=3, warmup_steps=2, forecast=part)))
        for part in (Hold(), Linear(), Damped())
    )
    assert damped.isfinite().all()
    assert not torch.allclose(held, damped, atol=1e-4)
    assert not torch.allclose(linear, damped, atol=1e-4)
