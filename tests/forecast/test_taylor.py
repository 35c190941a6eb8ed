"""The Taylor forecast: exact on polynomials over uneven times, one order lower with one output less."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowcache.forecast.base import Point
from flowcache.forecast.differences import difference_weights
from flowcache.forecast.linear import Linear
from flowcache.forecast.taylor import Taylor
from tests.methods import every_k
from tests.models import magi_goldens, skyreels_goldens

# Newest first, unevenly spaced.
TIMES = {"up": (0.5, 0.35, 0.3, 0.05), "down": (-0.2, 0.1, 0.25, 0.3)}
UNEVEN = pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)


def polynomial(t: float, degree: int) -> Tensor:
    factors = torch.tensor([[1.0, -2.0], [3.0, 0.5], [-2.0, 1.0], [1.5, -4.0]], dtype=torch.float64)
    return sum(factors[j] * t**j for j in range(degree + 1))


def points(times, degree: int) -> list[Point]:
    return [Point(t, polynomial(t, degree), 10 - i) for i, t in enumerate(times)]


@UNEVEN
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_polynomial_of_its_order_is_forecast_exactly_at_any_spacing(order, times):
    forecast = Taylor(order=order)
    known = points(times[: forecast.depth], order)
    thousandths = [Point(1000 * point.t, point.output) for point in known]
    for ahead in (0.0, 0.4, 1.0, 2.5):
        t = times[0] + ahead * (times[0] - times[1])
        torch.testing.assert_close(forecast.predict(t, known), polynomial(t, order), atol=1e-9, rtol=0)
        torch.testing.assert_close(forecast.predict(1000 * t, thousandths), polynomial(t, order), atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@UNEVEN
def test_order_1_is_linear(times, dtype):
    known = [Point(t, polynomial(t, 3).to(dtype)) for t in times[:2]]
    t = times[0] + 1.7 * (times[0] - times[1])
    for damping in (1.0, 0.3):
        taylor = Taylor(order=1, damping=damping).predict(t, known)
        torch.testing.assert_close(taylor, Linear(damping=damping).predict(t, known))


def test_damping_scales_the_terms_by_its_powers():
    """x^2 at 1, 2 and 3, forecast at 4: 9, then the line's 5, then the curve's 2."""
    known = [Point(t, torch.tensor([t * t])) for t in (3.0, 2.0, 1.0)]
    for damping, expected in {1.0: 16.0, 0.5: 9 + 5 / 2 + 2 / 4, 0.1: 9.52}.items():
        assert Taylor(damping=damping).predict(4.0, known).item() == pytest.approx(expected)
    assert Taylor(damping=0.0).predict(4.0, known) is known[0].output


@UNEVEN
def test_fewer_outputs_allow_a_lower_order(times):
    known, t = points(times, 3), 2 * times[0] - times[1]
    assert Taylor(order=3).predict(t, known[:1]) is known[0].output
    for order in (1, 2):
        lower = Taylor(order=order).predict(t, known[: order + 1])
        assert torch.equal(Taylor(order=3).predict(t, known[: order + 1]), lower)


def test_of_two_outputs_of_one_time_the_newer_counts():
    known = points((0.5, 0.3, 0.3, 0.05), 3)
    known[2] = Point(0.3, torch.full((2,), 7.0, dtype=torch.float64))
    distinct = [known[0], known[1], known[3]]
    assert torch.equal(Taylor(order=3).predict(0.6, known), Taylor(order=2).predict(0.6, distinct))
    assert Taylor(order=3).predict(0.6, [Point(0.5, point.output) for point in known]) is known[0].output


def test_published_differences_by_hand():
    """Outputs 0, 5 and 8 at steps 2, 3 and 6, forecast at 8."""
    known = [Point(0.0, torch.tensor([y]), step) for step, y in ((6, 8.0), (3, 5.0), (2, 0.0))]
    # F_1 = 3 / 3, before it 5 / 1, and F_2 = (1 - 5) / 3, by the latest gap alone; 8 + 1 * 2 - 4/3 * 2^2 / 2.
    assert Taylor(differences="published").predict(0.0, known, 8).item() == pytest.approx(8 + 2 - 8 / 3)
    assert difference_weights((6, 3, 2), published=True)[2] == pytest.approx([1 / 9, -4 / 9, 1 / 3])
    # At step 3 no difference was formed: there is no second one at 6.
    assert Taylor(differences="published", first=5).predict(0.0, known, 8).item() == pytest.approx(8 + 2)


def test_it_waits_for_no_number():
    known = [Point(t, torch.empty(2, device="meta"), 9 - i) for i, t in enumerate(TIMES["up"])]
    for differences in ("divided", "published"):
        assert Taylor(order=3, differences=differences).predict(0.7, known, 11).device.type == "meta"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"order": order}, "order=.* must be a whole number from 1 to 3") for order in (0, 4, 1.0, True, "2", None)),
        *(({"damping": d}, "damping=.* must be a number from 0 to 1") for d in (-0.1, 1.5, float("nan"), "half", True)),
        ({"differences": "newton"}, "differences='newton' is unknown; choose 'divided' or 'published'"),
        ({"differences": "published", "first": 0}, "first=0 must be a whole number of at least 1"),
        ({"first": 3}, "first=3 must be 1 with differences='divided'"),
    ],
)
def test_what_is_no_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Taylor(**options)


@pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens], ids=["magi", "skyreels"])
def test_every_model_takes_it_and_steps_are_told_to_the_published_form(goldens):
    parts = (Linear(), Taylor(), Taylor(differences="published"))
    generations = [goldens.small_generation(every_k(every=2, warmup_steps=3, forecast=part)) for part in parts]
    linear, divided, published = map(goldens.latents_of, generations)
    assert [generation.forecast_from for generation in generations] == [2, 3, 3]
    assert divided.isfinite().all()
    assert published.isfinite().all()
    assert not torch.allclose(linear, divided, atol=1e-4)
    assert not torch.allclose(divided, published, atol=1e-4)
