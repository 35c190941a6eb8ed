# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Forecasts: their orders, where to compute, and when they fail
#
# The numbers behind [docs/forecasting.md](../docs/forecasting.md), on a velocity that is known exactly. A skipped step
# takes a forecast of the network's output, and once the next output is known the skipped steps are taken again with
# interpolated outputs. The reference is always **vanilla**: the same N steps of Euler, all computed. The parts are the
# library's own (`Hold`, `Linear`, `OutputHistory`, `Solver`). Every claim is an `assert`.

# %%
import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = next(folder for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "run.py").is_file())
os.chdir(ROOT)
sys.path.insert(0, str(ROOT))

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from flowcache.forecast.base import Forecast, Point
from flowcache.forecast.correction import interpolate, interpolation_weights
from flowcache.forecast.history import OutputHistory
from flowcache.forecast.hold import Hold
from flowcache.forecast.linear import Linear
from flowcache.models.wan.unipc import Solver, noise_levels
from flowcache.schedule import ChunkStep, timesteps

# %matplotlib inline
plt.rcParams.update({"figure.dpi": 80, "font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.titlesize": 10})
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]  # told apart by colour-blind readers too
pd.set_option("display.width", 120)

# %% [markdown]
# ## The exact field and the loop
#
# MAGI-1's convention: $x = (1 - t)\,\epsilon + t\,x_0$ from noise ($t = 0$) to data ($t = 1$). The data are a mixture
# of Gaussians, whose optimal estimate $E[x_0 \mid x]$ is known (derived in `theorem_1`), and the velocity is
# $v = (E[x_0 \mid x] - x)/(1 - t)$.
#
# `generate` is what `MagiGeneration.advance` does with one chunk (`tests/forecast/test_orders.py` holds the two against
# each other). With a correction the latent is taken again from before the gap, and `keep` says what of the network's
# output stays true at the corrected latent: its estimate of the clean latent, or its velocity.


# %%
Field = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Mixture:
    """Equally likely Gaussians, as a velocity field. means: [K, D]; std: that of every component and coordinate."""

    means: Tensor
    std: float

    def clean(self, x: Tensor, t: float) -> Tensor:
        """E[data | x] of states x [paths, D]."""
        variance = (t * self.std) ** 2 + (1 - t) ** 2
        likelihood = (t * x @ self.means.T - 0.5 * t**2 * self.means.square().sum(1)) / variance
        mean = torch.softmax(likelihood, 1) @ self.means
        return mean + t * self.std**2 / variance * (x - t * mean)

    def __call__(self, x: Tensor, t: float) -> Tensor:
        return (self.clean(x, t) - x) / (1 - t)


def generate(
    field: Field,
    x: Tensor,
    times: Sequence[float],
    computed: Collection[int],
    forecast: Forecast | None = None,
    jumps: Sequence[int] = (),
    keep: str = "clean",
) -> list[Tensor]:
    """States before every step and after the last. A corrected state replaces the one its step was computed at."""
    history = OutputHistory(Hold() if forecast is None else forecast, jumps=lambda _: jumps)
    states = []
    for n, (t, t_next) in enumerate(pairwise(times)):
        step = ChunkStep(0, n, t, t_next)
        if n in computed:
            output = field(x, t)
            history.update(step, output, x)
            if (corrected := history.take_corrected(0)) is not None:
                latent, skipped = corrected
                for each, interpolated in skipped:
                    latent = latent + interpolated * (each.t_next - each.t)
                if keep == "clean":
                    output = output + (x - latent) / (1 - t)
                x = latent
        else:
            if history.opens_gap(0):
                history.open_gap(0, x, x.nbytes)
            output = history.predict(step)
        states.append(x)
        x = x + output * (t_next - t)
    return [*states, x]


def every(k: int, num_steps: int) -> set[int]:
    """Every k-th step, and the last one."""
    return {*range(0, num_steps, k), num_steps - 1}


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def even(num_steps: int) -> list[float]:
    return torch.linspace(0, 1, num_steps + 1, dtype=torch.float64).tolist()


def magi(num_steps: int) -> list[float]:
    """MAGI-1's own grid, shift 3: its steps grow along the process."""
    return timesteps(num_steps).double().tolist()


random = torch.Generator().manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=random, dtype=torch.float64)


def centres(count: int, dimensions: int) -> Tensor:
    """Centred points [count, D] with root mean square 1."""
    points = draw(count, dimensions)
    points -= points.mean(0)
    return points / points.square().mean().sqrt()


smooth, noise = Mixture(0.8 * centres(4, 8), 0.6), draw(16, 8)
METHODS = {
    "hold": Hold(),
    "linear": Linear(),
    "hold + line": Hold(correction=1),
    "linear + line": Linear(correction=1),
    "hold + quadratic": Hold(correction=2),
    "linear + quadratic": Linear(correction=2),
    "damped 0.5": Linear(damping=0.5),
    "damped 0.5 + quadratic": Linear(damping=0.5, correction=2),
}

# %% [markdown]
# Two facts first. Holding is nothing but Euler with longer steps: every 4th of 64 steps, held, is vanilla of 16. And a
# forecast that is exact gives vanilla's result: here an output linear in time, of which two were computed.

# %%
held = generate(smooth, noise, even(64), set(range(0, 64, 4)), Hold())
coarse = generate(smooth, noise, even(16), range(16))
longer = rms(held[-1] - coarse[-1])
a, b = draw(2, 16, 8)
straight = [generate(lambda x, t: a + b * t, noise, even(64), which, Linear())[-1] for which in (range(64), {0, 1, 9})]
exact = rms(straight[0] - straight[1])
print(f"hold against Euler with longer steps: {longer:.1e}; an output linear in time, 3 of 64 computed: {exact:.1e}")
assert max(longer, exact) < 1e-13

# %% [markdown]
# ## 1. Orders
#
# **Local**: one gap. Up to step $a$ all is vanilla's; steps $a$ and $m = a + k$ compute, the $k - 1$ between do not,
# and the output before $a$ was computed at $a - k$. $H = kh$. The error is that of the latent at $m$, after the
# correction if there is one. **Global**: the whole trajectory, every k-th step computed, error at the end.

# %%
K = 4
SIZES = (128, 256, 512, 1024)


def gap_error(field: Field, states: list[Tensor], times: Sequence[float], a: int, k: int, forecast: Forecast) -> Tensor:
    """Of the latent at a + k, relative to vanilla's ``states``."""
    first, end = a - k, a + k
    # From a - k on, with vanilla's states put in place of the forecast ones up to a: the history is of vanilla.
    history = OutputHistory(forecast)
    for n in (first, a):
        step = ChunkStep(0, n, times[n], times[n + 1])
        history.update(step, field(states[n], times[n]), states[n])
    x = states[a] + history.newest(0) * (times[a + 1] - times[a])
    if history.opens_gap(0):
        history.open_gap(0, x, x.nbytes)
    for n in range(a + 1, end):
        x = x + history.predict(ChunkStep(0, n, times[n], times[n + 1])) * (times[n + 1] - times[n])
    history.update(ChunkStep(0, end, times[end], times[end + 1]), field(x, times[end]), x)
    if (corrected := history.take_corrected(0)) is not None:
        x, skipped = corrected
        for each, interpolated in skipped:
            x = x + interpolated * (each.t_next - each.t)
    return x - states[end]


def slope(sizes: Sequence[int], errors: Sequence[float]) -> float:
    """Of log error over log H between the two shortest gaps, where the lowest order shows most clearly."""
    return float(np.log(errors[-2] / errors[-1]) / np.log(sizes[-1] / sizes[-2]))


LOCAL = {"hold": 2, "linear": 3, "hold + line": 3, "linear + line": 3, "hold + quadratic": 3, "linear + quadratic": 4}
LOCAL |= {"damped 0.5": 2, "damped 0.5 + quadratic": 3}  # a share of hold's error stays
vanillas = {size: generate(smooth, noise, even(size), range(size)) for size in SIZES}
rows, local_errors, global_errors = [], {}, {}
for name, forecast in METHODS.items():
    local_errors[name] = [rms(gap_error(smooth, vanillas[size], even(size), size // 2, K, forecast)) for size in SIZES]
    global_errors[name] = [
        rms(generate(smooth, noise, even(size), every(K, size), forecast)[-1] - vanillas[size][-1]) for size in SIZES
    ]
    rows.append(
        {
            "method": name,
            "local slope": slope(SIZES, local_errors[name]),
            "expected": LOCAL[name],
            "global slope": slope(SIZES, global_errors[name]),
            "expected ": LOCAL[name] - 1,
            "global error, 128 steps": f"{global_errors[name][0]:.1e}",
        }
    )
orders = pd.DataFrame(rows).set_index("method")
print(orders.round(2).to_string())
assert (orders["local slope"] - orders["expected"]).abs().max() < 0.25
assert (orders["global slope"] - orders["expected "]).abs().max() < 0.25

# %%
figure, panels = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
for axes, errors, title in zip(panels, (local_errors, global_errors), ("one gap", "the whole trajectory"), strict=True):
    for (name, values), colour in zip(errors.items(), COLOURS, strict=False):  # not damped
        axes.loglog([K / size for size in SIZES], values, "o-", color=colour, label=name)
    axes.set(title=f"Error against vanilla, {title}", xlabel="H, the gap's length", ylabel="rms")
panels[0].legend(fontsize=7)
plt.show()

# %% [markdown]
# The constants, for a gap of $k$ equal steps behind one of the same length (primes are derivatives of vanilla's outputs
# along its own trajectory):
#
# - hold: $-\tfrac{k(k-1)}{2}\,h^2 y'$, for large $k$ $-\tfrac12 H^2 y'$, Euler's;
# - linear: $-\tfrac{k(k-1)(5k-1)}{12}\,h^3 y''$, for large $k$ $-\tfrac5{12} H^3 y''$, that of Adams-Bashforth 2;
# - linear, then quadratic: interpolation, $+\tfrac{k^2(k^2-1)}{24}\,h^4 y'''$ (for large $k$ $\tfrac1{24} H^4 y'''$,
#   Adams-Moulton 3), **plus feedback**, $\tfrac{(k-1)(5k-1)}{12k}\,h\,[f(\hat x_m) - f(x_m)]$: the output at $m$ was
#   computed at the *predicted* latent, off by $J\,e$ with the Jacobian $J$ of $v$ and the prediction's error $e$.
#
# We compare vectors, not only sizes: the rest must be one order smaller, so that it halves with $H$.

# %%
rows = []
for size in SIZES:
    states, times, here, h = vanillas[size], even(size), size // 2, 1 / size
    # Derivatives in the middle of what each formula spans, where differences are of higher order.
    outputs = torch.stack([smooth(states[n], times[n]) for n in range(here - 2 * K, here + 2 * K)])
    at = 2 * K  # the place of a
    first = (outputs[at + 1] - outputs[at - 1]) / 2
    second = outputs[at + 1] - 2 * outputs[at] + outputs[at - 1]
    third = (outputs[at + 2] - 2 * outputs[at + 1] + 2 * outputs[at - 1] - outputs[at - 2]) / 2
    error = {name: gap_error(smooth, states, times, here, K, METHODS[name]) for name in METHODS}
    end = times[here + K]
    feedback = smooth(states[here + K] + error["linear"], end) - smooth(states[here + K], end)
    feedback *= (K - 1) * (5 * K - 1) / (12 * K) * h
    between = K**2 * (K**2 - 1) / 24 * h * third
    formula = {
        "hold": -K * (K - 1) / 2 * h * first,
        "linear": -K * (K - 1) * (5 * K - 1) / 12 * h * second,
        "linear + quadratic": between + feedback,
    }
    rest = {name: rms(error[name] - value) / rms(error[name]) for name, value in formula.items()}
    rows.append({"H": K / size} | rest | {"feedback / interpolation": rms(feedback) / rms(between)})
constants = pd.DataFrame(rows).set_index("H")
print("relative rest beyond the formula")
print(constants.round(4).to_string())
assert (constants.iloc[-1, :3] < 0.03).all()
assert (constants.iloc[0, :3] / constants.iloc[-1, :3] > 4).all()  # 8 times shorter

# %% [markdown]
# ### What stays true of an output after its latent was corrected
#
# The correction moves the latent by $\delta$; the network said $v$ (and so $x_0 = x + (1-t) v$) of the latent before.
# With $g = \partial E[x_0 \mid x] / \partial x$ along $\delta$,
#
# - keeping $v$ errs by $(1 - g)\,\delta/(1-t)$ in the velocity,
# - keeping $x_0$ errs by $g\,\delta/(1-t)$,
#
# so that **$x_0$ is better exactly where $g < 1/2$**. For one Gaussian of standard deviation $\tau$,
# $g = t\tau^2/(t^2\tau^2 + (1-t)^2)$: with $\tau = 1$ this is below 1/2 for $t < 1 - 1/\sqrt2 = 0.293$.

# %%
gaussian = Mixture(torch.zeros(1, 8, dtype=torch.float64), 1.0)
MAGI = magi(64)
states = generate(gaussian, noise, MAGI, range(64))
rows = []
for n in (8, 16, 24, 32, 40, 48, 56):
    t, x = MAGI[n], states[n]
    delta = 1e-3 * draw(*x.shape)
    truth, before = gaussian(x + delta, t), gaussian(x, t)
    g = t / (t**2 + (1 - t) ** 2)
    velocity, clean = rms(before - truth) / rms(delta), rms(before - delta / (1 - t) - truth) / rms(delta)
    rows.append({"step": n, "t": t, "g": g, "keeping v": velocity, "keeping x0": clean})
    assert np.isclose(velocity, abs(1 - g) / (1 - t))
    assert np.isclose(clean, g / (1 - t))
kept = pd.DataFrame(rows).set_index("step")
print(kept.round(3).to_string())
assert ((kept["keeping x0"] < kept["keeping v"]) == (kept["t"] < 1 - np.sqrt(0.5))).all()
below = sum(t < 1 - np.sqrt(0.5) for t in MAGI[:64])
print(f"g < 1/2 in the first {below} of 64 steps of MAGI-1's grid")

# %% [markdown]
# Over a whole trajectory, on MAGI-1's grid, every 4th of 64 steps:

# %%
random.manual_seed(1)
eight = {dimensions: centres(8, dimensions) for dimensions in (8, 64, 1024)}
starts = {dimensions: draw(6, dimensions) for dimensions in eight}
fields: dict[str, tuple[Field, Tensor]] = {"Gaussian, D = 8": (gaussian, noise), "4 blobs, D = 8": (smooth, noise)}
for dimensions in eight:
    fields[f"8 blobs, D = {dimensions}"] = Mixture(0.8 * eight[dimensions], 0.6), starts[dimensions]
for dimensions in eight:
    fields[f"8 points, D = {dimensions}"] = Mixture(eight[dimensions], 0.05), starts[dimensions]

rows = []
for name, (field, start) in fields.items():
    reference = generate(field, start, MAGI, range(64))[-1]
    both = {
        keep: rms(generate(field, start, MAGI, every(4, 64), Linear(correction=2), keep=keep)[-1] - reference)
        for keep in ("velocity", "clean")
    }
    rows.append({"data": name, "keeping v": both["velocity"], "keeping x0": both["clean"]})
whole = pd.DataFrame(rows).set_index("data")
print(whole.map("{:.1e}".format).to_string())
better = whole["keeping x0"] < whole["keeping v"]
assert list(better) == [name.startswith("8 points") for name in whole.index]

# %% [markdown]
# ## 2. Where to compute: the input's change against the error of skipping
#
# FlowCache and TeaCache accumulate L1_rel, the relative change of the input in a step. Under Euler it is
# $h\,\|v\|_1/\|x\|_1$: the grid's step, and hardly anything else. Skipping one step leaves $h\,\Delta v$ with hold,
# $h$ times the second difference with a linear forecast, and with the correction $h$ times what a quadratic through the
# neighbours misses. We skip each single step of 64 on MAGI-1's grid, go on with the network, and take the error at the
# end against vanilla. Rank correlation (Spearman) of that error with each figure over the steps, the mean over paths.
#
# Eight "points" (spread 0.05) or "blobs" (spread 0.6) in more and more dimensions: the more there are, the earlier a
# state shows which of the eight it becomes, and early steps are short.

# %%
ALL = set(range(64))
SKIPPED = range(2, 62)  # two outputs before, and one after
lengths = np.diff(MAGI)
longest, usual = lengths[-1] / lengths[0], lengths[-1] / np.median(lengths)
print(f"MAGI-1's last step is {longest:.0f} times its first, and {usual:.0f} times the median")
SHORT = {"hold": Hold(), "linear": Linear(), "linear + quadratic": Linear(correction=2)}


def per_path(x: Tensor) -> np.ndarray:
    return x.square().mean(1).sqrt().numpy()


def skipping(field: Field, start: Tensor) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Figures of every step, and the error at the end if it is skipped: [steps, paths] each."""
    states = generate(field, start, MAGI, ALL)
    outputs = [field(x, t) for x, t in zip(states[:-1], MAGI[:-1], strict=True)]
    figures: dict[str, list[np.ndarray]] = {}
    errors: dict[str, list[np.ndarray]] = {name: [] for name in SHORT}
    for n in SKIPPED:
        h, moved = MAGI[n + 1] - MAGI[n], (states[n] - states[n - 1]).abs().mean(1) / states[n - 1].abs().mean(1)
        points = [Point(MAGI[i], outputs[i]) for i in (n - 1, n - 2)]
        around = [Point(MAGI[n + 1], outputs[n + 1]), *points]
        first, second = per_path(outputs[n] - outputs[n - 1]), per_path(outputs[n] - Linear().predict(MAGI[n], points))
        third = per_path(outputs[n] - interpolate(MAGI[n], around))
        values = {"L1_rel of the input": moved.numpy(), "h |dv|": h * first, "|d2v|": second, "h |d2v|": h * second}
        for name, value in (values | {"h |d3v|": h * third}).items():
            figures.setdefault(name, []).append(value)
        for name, forecast in SHORT.items():
            # The steps before are vanilla's: two of them are what a forecast looks back on.
            skipped = generate(field, states[n - 2], MAGI[n - 2 :], set(range(66 - n)) - {2}, forecast)
            errors[name].append(per_path(skipped[-1] - states[-1]))
    return tuple({name: np.stack(each) for name, each in group.items()} for group in (figures, errors))


def rank_correlation(figure: np.ndarray, error: np.ndarray) -> float:
    """Spearman's over the steps, mean over paths."""
    ranks = [values.argsort(0).argsort(0).astype(float) for values in (figure, error)]
    return float(np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(*(each.T for each in ranks), strict=True)]))


studied = {name: skipping(*pair) for name, pair in fields.items() if name.startswith("8")}
rows = {
    (name, figure): {method: rank_correlation(values, error) for method, error in errors.items()}
    for name, (figures, errors) in studied.items()
    for figure, values in figures.items()
}
ranks = pd.DataFrame(rows).T.rename_axis(["data", "figure"])
print(ranks.round(2).to_string())
for name in studied:  # each method's own term ranks its steps, whatever the data
    assert ranks.loc[(name, "h |dv|"), "hold"] > 0.97
    assert ranks.loc[(name, "h |d2v|"), "linear"] > 0.97
    assert ranks.loc[(name, "h |d3v|"), "linear + quadratic"] > 0.97
assert ranks.loc[("8 points, D = 1024", "L1_rel of the input"), "hold"] < 0.2
assert ranks.loc[("8 blobs, D = 8", "L1_rel of the input"), "hold"] > 0.9  # smooth data: the grid makes all errors grow

# %% [markdown]
# **Input L1 is not always wrong**: where nothing is decided (blobs in few dimensions) the grid's growing steps make all
# errors grow, and it ranks steps as well as anything. It fails where content is decided in early, short steps (points
# in many dimensions), and between chunks: a chunk whose content follows from the chunk before (here the same data with
# one of the eight known) has nearly the same L1_rel and an error that is orders of magnitude smaller.

# %%
rows, figure = {}, plt.figure(figsize=(9.5, 3.2), layout="constrained")
panels = figure.subplots(1, 2)
for dimensions in (64, 1024):
    later = skipping(Mixture(eight[dimensions][:1], 0.05), starts[dimensions])
    both = [studied[f"8 points, D = {dimensions}"], later]
    pooled = [{name: np.concatenate([each[i][name] for each in both]) for name in both[0][i]} for i in (0, 1)]
    for name in ("L1_rel of the input", "h |dv|", "h |d2v|", "h |d3v|"):
        rows[f"D = {dimensions}", name] = {m: rank_correlation(pooled[0][name], e) for m, e in pooled[1].items()}
for axes, part, name in zip(panels, (0, 1), ("L1_rel of the input", "hold"), strict=True):
    for values, label, colour in zip(both, ("first chunk: one of 8", "later chunk: known"), COLOURS, strict=False):
        axes.semilogy(list(SKIPPED), values[part][name].mean(1), color=colour, label=label)
    axes.set(xlabel="step", title=name if part == 0 else "error at the end if the step is held")
    axes.legend()
plt.show()
pooled_ranks = pd.DataFrame(rows).T.rename_axis(["first and later chunk", "figure"])
print(pooled_ranks.round(2).to_string())
middle = slice(18, 30)  # steps 20 to 31
ratios = {
    name: float(studied["8 points, D = 1024"][part][name][middle].mean() / later[part][name][middle].mean())
    for part, name in ((0, "L1_rel of the input"), (1, "hold"))
}
print(f"steps 20 to 31, D = 1024, first chunk over later: L1_rel {ratios['L1_rel of the input']:.2f},", end=" ")
print(f"error of holding a step {ratios['hold']:.0f}")
assert pooled_ranks.loc[("D = 1024", "L1_rel of the input"), "hold"] < 0.5
assert pooled_ranks.loc[("D = 1024", "h |d2v|"), "linear"] > 0.97
assert ratios["hold"] > 100 > 2 > ratios["L1_rel of the input"] > 0.5

# %% [markdown]
# What that costs: about 16 of 64 steps, placed so that each gap has the same share of a figure's sum. Of the error
# terms the root that makes shares add up over a gap (an error of order $H^p$: root $p$).


# %%
def placed(weight: np.ndarray, count: int) -> set[int]:
    """First and last, and between them steps at equal parts of the weight's sum; two first ones to begin a line."""
    total = np.concatenate([[0], np.cumsum(weight)])
    at = np.interp(np.linspace(0, total[-1], count - 1), total, np.arange(len(total)))
    return {0, 1, 63, *(int(step) for step in at.round() + 1)}


rows = []
for name in ("8 points, D = 1024", "8 blobs, D = 64"):
    field, start = fields[name]
    figures, reference = studied[name][0], generate(field, start, MAGI, ALL)[-1]
    means = {key: value.mean(1) for key, value in figures.items()}
    places = {
        "every 4th": {*range(0, 64, 4), 1, 63},
        "input L1": placed(means["L1_rel of the input"], 16),
        "hold's term": placed(means["h |dv|"] ** (1 / 2), 16),
        "linear's term": placed(means["h |d2v|"] ** (1 / 3), 16),
        "correction's term": placed(means["h |d3v|"] ** (1 / 4), 16),
    }
    for place, computed in places.items():
        errors = {m: rms(generate(field, start, MAGI, computed, f)[-1] - reference) for m, f in SHORT.items()}
        rows.append({"data": name, "placed by": place, "computed": len(computed)} | errors)
placing = pd.DataFrame(rows).set_index(["data", "placed by"])
print(placing.to_string(float_format="{:.1e}".format))
assert placing.loc[("8 points, D = 1024", "hold's term"), "hold"] < 0.01 * placing.iloc[1]["hold"]
for _, group in placing.groupby("data"):
    own = group.xs("correction's term", level="placed by")["linear + quadratic"].item()
    assert own < 0.7 * group.xs("input L1", level="placed by")["linear + quadratic"].item()

# %% [markdown]
# Held, the steps by input L1 let a path of "points" end on another of the eight. Dividing evenly is only a first step:
# the terms are those of one skipped step, and a linear forecast over a long gap behind a short one goes wrong sooner
# than they say. A plan has to count whole gaps (FlowCast: a shortest path over them).

# %% [markdown]
# ## 3. When it must fail
#
# **Few steps.** By the constants above linear beats hold in a gap only while $h\,(5k - 1)\,|y''| < 6\,|y'|$, and the
# correction needs neighbours within reach of a quadratic. Every 2nd step on MAGI-1's grid: the share of gaps (and
# paths) in which each is worse than holding, on vanilla's own outputs; and the error at the end, relative to hold's.

# %%
FEW = (8, 16, 32, 64, 128, 256)
rows = []
for name in ("8 blobs, D = 64", "8 points, D = 64", "8 points, D = 1024"):
    field, start = fields[name]
    for size in FEW:
        times = magi(size)
        states = generate(field, start, times, range(size))
        outputs = [Point(t, field(x, t)) for x, t in zip(states[:-1], times[:-1], strict=True)]
        worse: dict[str, list[np.ndarray]] = {"linear": [], "quadratic": []}
        for n in range(3, size - 1):  # skipped; n - 3, n - 1 and n + 1 computed
            held_error = per_path(outputs[n].output - outputs[n - 1].output)
            points = [outputs[n - 1], outputs[n - 3]]
            forecast_error = per_path(outputs[n].output - Linear().predict(times[n], points))
            between = per_path(outputs[n].output - interpolate(times[n], [outputs[n + 1], *points]))
            worse["linear"].append(forecast_error > held_error)
            worse["quadratic"].append(between > held_error)
        errors = {m: rms(generate(field, start, times, every(2, size), f)[-1] - states[-1]) for m, f in SHORT.items()}
        rows.append(
            {"data": name, "N": size}
            | {f"{key} worse": np.mean(values) for key, values in worse.items()}
            | {f"{m} / hold": errors[m] / errors["hold"] for m in ("linear", "linear + quadratic")}
        )
few = pd.DataFrame(rows).set_index(["data", "N"])
print(few.round(2).to_string())
wrong = few["linear worse"].unstack("N")
assert (wrong[16] > wrong[64]).all()
assert (wrong[64] > wrong[256]).all()

# %% [markdown]
# **Jumps.** When a chunk's neighbour finishes, its keys become clean and the chunk's output jumps
# (`flowcache.schedule.Schedule.jumps`; 8 to 12 % of the velocity on embedded MAGI-1). We add a constant of 10 % of the
# velocity from step 48 on, which is computed, to two fields: a later chunk's, whose content is known (one point: the
# velocity hardly changes), and one whose velocity changes much on its own. A quadratic across the jump puts
# $\tfrac{(k-1)(5k-1)}{12k}$ steps' worth of it into steps that had nothing of it, and a line across it goes on rising:
# errors of first order in $H$. Forgetting what was computed before costs one gap without correction and one held.

# %%
JUMP = 48
jump = draw(*noise.shape) * 0.1 * rms(smooth(noise, 0.0))


def with_jump(field: Field, size: Tensor) -> Field:
    return lambda x, t: field(x, t) + size * (t >= MAGI[JUMP])


FORGETS = {"kept": (), "forgotten": (JUMP,)}
rows = []
for name, field in (("content known", Mixture(centres(2, 8)[:1], 0.05)), ("4 blobs", smooth)):
    jumping = with_jump(field, jump)
    reference = generate(jumping, noise, MAGI, ALL)
    for k in (4, 8):
        for method, forecast in SHORT.items():
            row: dict[str, object] = {"data": name, "every": k, "method": method}
            runs = {
                label: generate(jumping, noise, MAGI, every(k, 64), forecast, known) for label, known in FORGETS.items()
            }
            for n, where in ((JUMP, "at the jump"), (JUMP + k, "a gap later")):
                row |= {f"{where}, {label}": rms(states[n] - reference[n]) for label, states in runs.items()}
            rows.append(row)
jumps = pd.DataFrame(rows).set_index(["data", "every", "method"])
print(jumps.to_string(float_format="{:.1e}".format))
known = jumps.loc["content known"].xs("linear + quadratic", level="method")
assert (known["at the jump, kept"] > 10 * known["at the jump, forgotten"]).all()

# %% [markdown]
# **Guidance and rounding.** A linear forecast over a gap ratio $r = (t - t_a)/(t_a - t_{a'})$ weighs two outputs by
# $1 + \gamma r$ and $-\gamma r$: noise of the outputs that differs from step to step (rounding, guidance's error) grows
# by $\sqrt{(1 + \gamma r)^2 + (\gamma r)^2}$; holding by 1. A quadratic *between* two outputs damps it. Against that
# stands what is not followed: with $D$ the size of the change $y_a - y_{a'}$ and noise $\sigma$, the sum of squares is
# least at $\gamma = (D^2 - \sigma^2/r) / (D^2 + 2 \sigma^2)$.

# %%
rows = []
for gamma in (0.0, 0.5, 0.9, 1.0):
    for r in (0.5, 1.0, 2.0, 3.0):
        newest, before = draw(2, 100_000)
        got = Linear(damping=gamma).predict(1 + r, [Point(1.0, newest), Point(0.0, before)]).std().item()
        rows.append({"damping": gamma, "r": r, "measured": got, "formula": np.hypot(1 + gamma * r, gamma * r)})
gains = pd.DataFrame(rows)
assert np.allclose(gains["measured"], gains["formula"], rtol=0.02)
print(gains.pivot(index="damping", columns="r", values="measured").round(2).to_string())
quadratic = max(np.linalg.norm(interpolation_weights(t, (2.0, 1.0, 0.0))) for t in np.linspace(1, 2, 101))
print(f"a quadratic between two of three evenly spaced outputs: at most {quadratic:.2f}")
assert quadratic <= 1
change, sigma, r = 1.0, 0.5, 1.0
dampings = np.linspace(0, 1, 101)
errors = ((1 - dampings) * r * change) ** 2 + sigma**2 * ((1 + dampings * r) ** 2 + (dampings * r) ** 2)
best = (change**2 - sigma**2 / r) / (change**2 + 2 * sigma**2)
print(f"noise of half the change, r = 1: best damping {dampings[errors.argmin()]:.2f}, by the formula {best:.2f}")
assert abs(dampings[errors.argmin()] - best) < 0.006

# %% [markdown]
# Guidance of scale $s$ forecasts $v_u + s\,(v_c - v_u)$: noise of the two branches that is independent of each other
# grows by $\sqrt{s^2 + (s - 1)^2}$, and so does a forecast's error where the branches differ. Captioned: one of the
# eight; null: all.

# %%
rows = []
for name in ("8 blobs, D = 64", "8 points, D = 64"):
    null_field, start = fields[name]
    captioned = Mixture(null_field.means[:1], null_field.std)
    for scale in (1.0, 2.0, 4.0, 6.0):

        def guided(
            x: Tensor, t: float, scale: float = scale, null: Field = null_field, own: Field = captioned
        ) -> Tensor:
            return null(x, t) + scale * (own(x, t) - null(x, t))

        # Up to step 40, where the branches differ: towards the end they agree.
        reference = generate(guided, start, MAGI, ALL)
        errors = {}
        for method, forecast in SHORT.items():
            states = generate(guided, start, MAGI, every(4, 64), forecast)
            errors[method], errors[method + ", at the end"] = (rms(states[n] - reference[n]) for n in (40, 64))
        rows.append({"data": name, "scale": scale, "noise": np.hypot(scale, scale - 1)} | errors)
guidance = pd.DataFrame(rows).set_index(["data", "scale"])
print(guidance.to_string(float_format="{:.1e}".format))
for name, group in guidance.groupby("data"):
    grown = group.loc[(name, 6.0)] / group.loc[(name, 2.0)]
    print(f"{name}: from scale 2 to 6 at step 40, linear {grown['linear']:.1f} times,", end=" ")
    print(f"corrected {grown['linear + quadratic']:.1f} times")
    assert grown["linear"] > 3 > grown["linear + quadratic"]

# %% [markdown]
# Outputs rounded to bfloat16 (each by up to $2^{-9}$ of itself): one gap of 4 steps, shorter and shorter. The error no
# longer falls with $H^2$ or $H^3$ but with $H$, and where the change over a gap is no larger than the rounding, the
# forecast is worth no more than holding.

# %%
FINE = (32, 128, 512, 2048, 8192)
middle_state = vanillas[128][60]


def rounded(x: Tensor, t: float) -> Tensor:
    return smooth(x, t).bfloat16().double()


rows = []
for size in FINE:
    row = {"H": K / size}
    times = [0.5 + n / size for n in range(-K, K + 2)]  # around one gap; a is the K-th
    states = generate(smooth, middle_state, times, range(len(times) - 1))
    rounded_states = generate(rounded, middle_state, times, range(len(times) - 1))
    for label, field, vanilla in (("exact", smooth, states), ("bfloat16", rounded, rounded_states)):
        for name, forecast in SHORT.items():
            row[f"{name}, {label}"] = rms(gap_error(field, vanilla, times, K, K, forecast))
    rows.append(row)
rounding = pd.DataFrame(rows).set_index("H")
print(rounding.to_string(float_format="{:.1e}".format))
last = rounding.iloc[-1]
assert last["linear, bfloat16"] > 0.9 * last["hold, bfloat16"]  # nothing is left of its order
assert last["linear, exact"] < last["hold, exact"] / 100
tail = np.log(rounding["linear, bfloat16"].iloc[-2] / last["linear, bfloat16"]) / np.log(4)
print(f"slope of linear in bfloat16 at the end: {tail:.2f} (exact: 3)")
assert abs(tail - 1) < 0.3

# %% [markdown]
# ## 4. UniPC: the solver's history is part of the state
#
# SkyReels-V2's solver, of order 2, goes from step to step by the last two estimates of the clean latent and, from the
# second step on, begins by taking the last step again from `last`, the latent that it started from. The latent that it
# is handed is not read any more. **So correcting the latent alone corrects nothing**, and correcting it with `last` but
# not the estimates still looks back on guesses. We let the estimate be a quadratic in the timestep, independent of x:
# then interpolation is exact, and a replay must give vanilla's trajectory to rounding (float32).

# %%
LEVELS, STEPS = noise_levels(30, 8.0)
COMPUTED = {0, 1, 2, 5, 9, 14, 18, 22, 26, 29}
coefficients = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
latent_noise = torch.randn(64, generator=torch.Generator().manual_seed(1))


def estimate(t: float) -> Tensor:
    return coefficients[0] + coefficients[1] * (t / 1000) + coefficients[2] * (t / 1000) ** 2


def unipc(computed: Collection[int], corrects: str, forecast: Forecast) -> list[Tensor]:
    """Latents after every computed step. corrects: "nothing", "latent", "latent and last", "the solver"."""
    solver, latent, points, gap, after = Solver(LEVELS), latent_noise, [], None, []
    for n, t in enumerate(STEPS):
        if n in computed:
            points = [Point(t, estimate(t), n), *points][:3]
            if gap is not None:
                replayed, corrected, skipped = gap
                for each in skipped:
                    corrected = replayed.step(interpolate(each, points), corrected)
                if corrects != "nothing":
                    latent = corrected
                if corrects == "latent and last":
                    solver.last = replayed.last
                if corrects == "the solver":
                    solver = replayed
            gap, clean = None, points[0].output
        else:
            gap = (solver.copy(), latent, []) if gap is None else gap
            gap[2].append(t)
            clean = forecast.predict(t, points[: forecast.depth])
        latent = solver.step(clean, latent)
        if n in computed:
            after.append(latent)
    return after


truth = unipc(range(30), "nothing", Hold())
truth = [latent for n, latent in enumerate(truth) if n in COMPUTED]
rows = {}
for corrects in ("nothing", "latent", "latent and last", "the solver"):
    for name, forecast in (("hold", Hold()), ("linear", Linear())):
        got = unipc(COMPUTED, corrects, forecast)
        error = max((a - b).abs().max().item() for a, b in zip(got, truth, strict=True))
        rows.setdefault(corrects, {})[name] = error
solvers = pd.DataFrame(rows).T.rename_axis("corrected")
print("largest error of the latents after computed steps")
print(solvers.to_string(float_format="{:.1e}".format))
assert (solvers.loc["the solver"] < 2e-6).all()
assert (solvers.loc["latent"] == solvers.loc["nothing"]).all()  # to the bit
assert (solvers.loc[["latent", "latent and last"]] > 1e-3).all(axis=None)

# %% [markdown]
# ## What holds
#
# - Hold, linear, linear corrected by a quadratic are of order 1, 2, 3 against vanilla, with the constants of Euler,
#   Adams-Bashforth 2 and Adams-Moulton 3; the correction gains no more than one order on its forecast, and damping
#   costs one: a share of hold's error stays.
# - A step's error is ranked by the method's own term. The input's change ranks it well for smooth data on MAGI-1's
#   grid, and not where content is decided in early steps or in one chunk and not in another.
# - Few steps, jumps, guidance and rounding each take the gain away in a way that can be said beforehand.
# - With a multistep solver the state is the solver, not the latent.
