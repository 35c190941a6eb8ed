"""The Hermite forecast: by hand, and the same on every grid over times."""

from __future__ import annotations

import math

import pytest
import torch

from flowcache.forecast.base import Point
from flowcache.forecast.hermite import Hermite
from flowcache.forecast.hold import Hold
from flowcache.forecast.linear import Linear
from flowcache.forecast.taylor import Taylor
from tests.methods import every_k
from tests.models import magi_goldens, skyreels_goldens


def squares(*times: float) -> list[Point]:
    return [Point(t, torch.tensor([t * t], dtype=torch.float64), int(t)) for t in times]


@pytest.mark.parametrize(
    ("basis", "divided", "published"),
    [
        # F = 36, 10, 2 a latest gap of 2, and at h = 1.5 with s = 0.5: 36 + 20 s 2x + 8 s^2 (4 x^2 - 2) / 2, x = 0.75.
        ("hermite", 36 + 20 * 0.5 * 1.5 + 4 * 0.25 * (2.25 - 2), 36 + 10 * 0.5 * 3 + 0.25 * 2.5 / 2 * (9 - 2)),
        # h^j s^(2j) / j!; published F_2 = (10 - 5) / 2 at h = 3, as steps are counted.
        ("taylor_scaled", 36 + 20 * 1.5 * 0.25 + 4 * 2.25 / 16, 36 + 10 * 3 * 0.25 + 2.5 / 2 * 9 / 16),
    ],
)
def test_terms_by_hand(basis, divided, published):
    """x^2 at 1, 4 and 6, forecast at 9."""
    known = squares(6, 4, 1)
    assert Hermite(basis=basis).predict(9.0, known).item() == pytest.approx(divided)
    parity = Hermite(basis=basis, differences="published")
    assert parity.predict(0.0, known, 9).item() == pytest.approx(published)


def test_order_3_by_hand():
    """x^3 at 0 to 3 in even gaps, forecast one ahead: F = 27, 19, 12, 6 and x = 1."""
    known = [Point(t, torch.tensor([t**3], dtype=torch.float64)) for t in (3.0, 2.0, 1.0, 0.0)]
    expected = 27 + 19 * 2 + 12 / 2 * (4 - 2) + 6 / 6 * (8 - 12)
    assert Hermite(order=3, scale=1.0).predict(4.0, known).item() == pytest.approx(expected)


def test_at_order_1_its_slope_is_2_s_squared_of_the_lines():
    known = squares(6, 4)
    for differences in ("divided", "published"):
        for scale, damping in ((math.sqrt(0.5), 1.0), (0.5, 0.5)):
            forecast = Hermite(order=1, scale=scale, differences=differences).predict(9.0, known, 9)
            torch.testing.assert_close(forecast, Linear(damping=damping).predict(9.0, known))
    plain = Hermite(scale=1.0, basis="taylor_scaled", differences="published").predict(0.0, squares(6, 4, 1), 9)
    torch.testing.assert_close(plain, Taylor(differences="published").predict(0.0, squares(6, 4, 1), 9))


@pytest.mark.parametrize("basis", ["hermite", "taylor_scaled"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_over_times_a_scale_means_the_same_on_any_grid(order, basis):
    draw = torch.Generator().manual_seed(0)
    times = (0.5, 0.35, 0.3, 0.05)[: order + 1]
    outputs = torch.randn(4, 8, generator=draw, dtype=torch.float64)
    forecast = Hermite(order=order, basis=basis)
    up = forecast.predict(0.6, [Point(t, output) for t, output in zip(times, outputs, strict=False)])
    down = forecast.predict(399.6, [Point(999 * (1 - t), output) for t, output in zip(times, outputs, strict=False)])
    torch.testing.assert_close(up, down, atol=1e-9, rtol=0)


def test_one_output_and_outputs_of_one_time_are_held():
    known = squares(6, 4, 1)
    assert Hermite().predict(9.0, known[:1]) is known[0].output
    assert Hermite().predict(9.0, [Point(6.0, point.output) for point in known]) is known[0].output


def test_it_waits_for_no_number():
    known = [Point(t, torch.empty(2, device="meta"), int(t)) for t in (6, 4, 1)]
    for differences in ("divided", "published"):
        assert Hermite(differences=differences).predict(9, known, 9).device.type == "meta"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 0}, "order=0 must be a whole number from 1 to 3"),
        *(({"scale": s}, "scale=.* must be a finite number above 0") for s in (0, -1.0, math.inf, math.nan, "1", True)),
        ({"basis": "hicache"}, "basis='hicache' is unknown; choose 'hermite' or 'taylor_scaled'"),
        ({"differences": None}, "differences=None is unknown; choose 'divided' or 'published'"),
    ],
)
def test_what_is_no_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Hermite(**options)


@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens], ids=["magi", "skyreels"])
def test_every_model_takes_it_and_another_video_comes_out(goldens):
    held, forecast = (
        goldens.latents_of(goldens.small_generation(every_k(every=2, warmup_steps=3, forecast=part)))
        for part in (Hold(), Hermite())
    )
    assert forecast.isfinite().all()
    assert not torch.allclose(held, forecast, atol=1e-4)
