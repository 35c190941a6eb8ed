"""Orders of the forecasts and of their correction against vanilla, on an exact velocity (see docs/forecasting.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from flowcache.forecast.base import Forecast, Point
from flowcache.forecast.correction import interpolate
from flowcache.forecast.history import OutputHistory
from flowcache.forecast.hold import Hold
from flowcache.forecast.linear import Linear
from flowcache.models.wan.unipc import Solver, noise_levels
from flowcache.reuse.base import Decision
from flowcache.schedule import ChunkStep, Row, timesteps
from tests.methods import by_row
from tests.models import magi_goldens

Field = Callable[[Tensor, float], Tensor]
GAP = 4
ORDERS = pytest.mark.parametrize(
    ("forecast", "order"),
    [
        pytest.param(Hold(), 1, id="hold"),
        pytest.param(Linear(), 2, id="linear"),
        pytest.param(Hold(correction=2), 2, id="hold, quadratic"),
        pytest.param(Linear(correction=1), 2, id="linear, line"),
        pytest.param(Linear(damping=0.5), 1, id="damped"),
        pytest.param(Linear(damping=0.5, correction=2), 2, id="damped, quadratic"),
        pytest.param(Linear(correction=2), 3, id="linear, quadratic"),
    ],
)


def two_gaussians(x: Tensor, t: float, mean: float = 0.8, std: float = 0.6) -> Tensor:
    """The optimal velocity, coordinate by coordinate, of data that are +mean or -mean with a spread."""
    variance = (t * std) ** 2 + (1 - t) ** 2
    centre = mean * torch.tanh(t * mean * x / variance)
    clean = centre + t * std**2 / variance * (x - t * centre)
    return (clean - x) / (1 - t)


def generate(
    field: Field,
    x: Tensor,
    times: Sequence[float],
    computed: Collection[int],
    forecast: Forecast,
    jumps: Sequence[int] = (),
) -> list[Tensor]:
    """States at every time; what MagiGeneration does with one chunk, in any precision. Held against it below."""
    history, states = OutputHistory(forecast, jumps=lambda _: jumps), []
    for n, (t, t_next) in enumerate(pairwise(times)):
        step = ChunkStep(0, n, t, t_next)
        if n in computed:
            output = field(x, t)
            history.update(step, output, x)
            latent = replayed(history, x)
            output, x = output + (x - latent) / (1 - t), latent
        else:
            if history.opens_gap(0):
                history.open_gap(0, x, x.nbytes)
            output = history.predict(step)
        states.append(x)
        x = x + output * (t_next - t)
    return [*states, x]


def replayed(history: OutputHistory, x: Tensor) -> Tensor:
    """The latent after its skipped steps were taken again; as it is where there are none."""
    if (corrected := history.take_corrected(0)) is None:
        return x
    x, skipped = corrected
    for step, output in skipped:
        x = x + output * (step.t_next - step.t)
    return x


def gap_error(field: Field, states: Sequence[Tensor], times: Sequence[float], first: int, forecast: Forecast) -> Tensor:
    """Of the latent at first + GAP, relative to vanilla's states; ``first`` and first - GAP computed, as vanilla."""
    history = OutputHistory(forecast)
    steps = [ChunkStep(0, n, times[n], times[n + 1]) for n in range(first + GAP + 1)]
    for n in (first - GAP, first):
        history.update(steps[n], field(states[n], times[n]), states[n])
    x = states[first + 1]
    if history.opens_gap(0):
        history.open_gap(0, x, x.nbytes)
    for step in steps[first + 1 : -1]:
        x = x + history.predict(step) * (step.t_next - step.t)
    history.update(steps[-1], field(x, steps[-1].t), x)
    return replayed(history, x) - states[first + GAP]


def grid(num_steps: int) -> list[float]:
    return torch.linspace(0, 1, num_steps + 1, dtype=torch.float64).tolist()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


@ORDERS
def test_the_error_of_one_gap_falls_with_one_order_more_than_that_of_the_trajectory(forecast, order):
    gap, end = [], []
    for size in (256, 512):
        vanilla = generate(two_gaussians, noise(64), grid(size), range(size), Hold())
        gap.append(rms(gap_error(two_gaussians, vanilla, grid(size), size // 2, forecast)))
        computed = {*range(0, size, GAP), size - 1}
        end.append(rms(generate(two_gaussians, noise(64), grid(size), computed, forecast)[-1] - vanilla[-1]))
    assert math.log2(gap[0] / gap[1]) == pytest.approx(order + 1, abs=0.2)
    assert order - 0.2 < math.log2(end[0] / end[1]) < order + 0.4  # errors of many gaps may cancel


@pytest.mark.parametrize(
    ("forecast", "power", "constant"),
    [
        (Hold(), 1, -GAP * (GAP - 1) / 2),
        (Linear(), 2, -GAP * (GAP - 1) * (5 * GAP - 1) / 12),
        (Linear(correction=2), 3, GAP**2 * (GAP**2 - 1) / 24),
    ],
    ids=["hold", "linear", "quadratic"],
)
def test_the_constants_of_a_gap_where_the_output_is_the_lowest_power_of_time_that_is_missed(forecast, power, constant):
    def field(x: Tensor, t: float) -> Tensor:
        return torch.full_like(x, t**power / math.factorial(power))  # of this derivative 1, whatever x is

    size = 32
    vanilla = generate(field, noise(1), grid(size), range(size), Hold())
    # Where the middle of the gap's formula is does not matter: the derivative is the same everywhere.
    error = gap_error(field, vanilla, grid(size), 8, forecast).item()
    assert error == pytest.approx(constant / size ** (power + 1), rel=1e-6)


def test_holding_is_euler_with_longer_steps():
    held = generate(two_gaussians, noise(64), grid(64), range(0, 64, GAP), Hold())
    torch.testing.assert_close(held[-1], generate(two_gaussians, noise(64), grid(16), range(16), Hold())[-1])


def test_across_a_jump_of_the_outputs_a_correction_spoils_the_gap_before_and_a_history_that_forgets_does_not():
    times, jump = timesteps(64).double().tolist(), 48

    def field(x: Tensor, t: float) -> Tensor:
        return torch.sin(x / 10) + 0.1 * (t >= times[jump])

    vanilla, computed = generate(field, noise(64), times, range(64), Hold())[jump], set(range(0, 64, GAP))
    kept, forgotten = (
        rms(generate(field, noise(64), times, computed, Linear(correction=2), jumps)[jump] - vanilla)
        for jumps in ((), (jump,))
    )
    # Of the jump, the quadratic's share at the gap's steps; these are of nearly even length.
    share = 0.1 * (times[jump] - times[jump - GAP]) / GAP * (GAP - 1) * (5 * GAP - 1) / (12 * GAP)
    assert kept == pytest.approx(share, rel=0.1)
    assert forgotten < 0.02 * kept


@pytest.mark.parametrize("options", [{}, {"correction": 2}], ids=["forecast", "corrected"])
def test_magi_takes_the_same_steps(options):
    """With the exact velocity in place of its network; the loop of this file stands for its own then."""
    forecast, computed = Linear(**options), {0, 1, 5, 9, 12, 15}
    method = by_row(lambda row: Decision(row.chunks if row.index in computed else ()), forecast=forecast)
    generation = magi_goldens.small_generation(method, num_chunks=1, num_steps=16)
    start, times = generation.latents.double(), [*(row.oldest.t for row in generation.schedule.rows), 1.0]

    def guided(row: Row, passes: object) -> dict[int, Tensor]:
        return {0: two_gaussians(generation.latents, row.oldest.t)}

    generation._guidance_1 = guided
    got = magi_goldens.latents_of(generation).double()
    expected, vanilla = (generate(two_gaussians, start, times, which, forecast)[-1] for which in (computed, range(16)))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert rms(got - vanilla) > 1e-2


STEPS, COMPUTED = 30, (0, 1, 2, 5, 9, 14, 18, 22, 26, 29)


def unipc(computed: Collection[int], corrects: str, forecast: Forecast) -> list[Tensor]:
    """Latents after the steps of COMPUTED, where the clean latent's estimate is a quadratic in time, whatever x is."""
    levels, times = noise_levels(STEPS, 8.0)
    a, b, c, latent = noise(4, 64).float()
    solver, points, gap, after = Solver(levels), [], None, []
    for n, t in enumerate(times):
        if n in computed:
            points = [Point(t, a + b * (t / 1000) + c * (t / 1000) ** 2, n), *points][:3]
            if gap is not None:
                replayed, corrected, skipped = gap
                for each in skipped:
                    corrected = replayed.step(interpolate(each, points), corrected)
                if corrects in ("latent", "solver"):
                    latent = corrected
                if corrects == "solver":
                    solver = replayed
            gap, clean = None, points[0].output
        else:
            gap = (solver.copy(), latent, []) if gap is None else gap
            gap[2].append(t)
            clean = forecast.predict(t, points[: forecast.depth])
        latent = solver.step(clean, latent)
        if n in COMPUTED:
            after.append(latent)
    return after


@pytest.mark.parametrize("forecast", [Hold(), Linear()], ids=["hold", "linear"])
def test_replaying_unipc_gives_vanillas_trajectory_and_correcting_its_latent_alone_gives_nothing(forecast):
    vanilla = torch.stack(unipc(range(STEPS), "nothing", forecast))
    nothing, latent, solver = (torch.stack(unipc(COMPUTED, what, forecast)) for what in ("nothing", "latent", "solver"))
    torch.testing.assert_close(solver, vanilla, atol=2e-6, rtol=0)
    assert torch.equal(latent, nothing)  # from its second step on the solver goes on from what it kept
    assert (latent - vanilla).abs().max() > 1e-3
