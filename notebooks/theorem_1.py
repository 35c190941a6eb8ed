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
# # Theorem 1, with an exact velocity field
#
# FlowCache (arXiv 2602.10825) decides what to reuse by the relative L1 change of a chunk's latent in a step,
# $\mathrm{L1_{rel}} = \|x_{next} - x\|_1 / \|x\|_1$, and argues for it with
#
# - **Theorem 1**: with the optimal flow-matching velocity and a power-law schedule $\sigma(t) = (t/T)^p$, L1_rel grows
#   monotonically as denoising proceeds;
# - **Corollary 1**: chunks whose states differ in norm and whose updates are about equal have different L1_rel at the
#   same t, so that one decision for all chunks is wrong.
#
# We check both where nothing is learned: for a Gaussian mixture the optimal velocity is known in closed form. Every
# claim below is an `assert`. `theorem_1_embedded` then looks at the embedded MAGI-1, where the assumptions meet a real
# sampler.

# %%
import os
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = next(folder for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "run.py").is_file())
os.chdir(ROOT)
sys.path.insert(0, str(ROOT))

import numpy as np
import pandas as pd
import torch
from IPython.display import display
from matplotlib import pyplot as plt

# %matplotlib inline
plt.rcParams.update({"figure.dpi": 80, "font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.titlesize": 10})
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]  # told apart by colour-blind readers too

# %% tags=["parameters"]
NUM_STEPS = 64
EXPONENTS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # p
DIMENSIONS, PATHS = 256, 16

# %% [markdown]
# ## The exact velocity
#
# At noise level $s = \sigma(t)$, from 1 (noise) down to 0 (clean), a state is $x = (1 - s)\,x_0 + s\,\epsilon$ with
# data $x_0$ and Gaussian noise $\epsilon$ of variance 1. Its derivative by $s$ is $\epsilon - x_0$. A network sees $x$
# only, so the velocity with the least squared error is the conditional mean
#
# $$v(x, s) = E[\epsilon \mid x] - E[x_0 \mid x].$$
#
# Let the data be a mixture of Gaussians with means $\mu_k$ and one common diagonal covariance $\tau^2$. Given component
# $k$, $x$ is Gaussian with mean $(1 - s)\,\mu_k$ and variance $w = (1 - s)^2 \tau^2 + s^2$, and both conditional means
# are linear in the offset $x - (1 - s)\,\mu_k$: the noise takes $s/w$ of it, the data, beyond $\mu_k$,
# $(1 - s)\,\tau^2/w$. Weighing the components by how likely each made $x$ gives $v$ exactly.


# %%
@dataclass(frozen=True)
class Mixture:
    """Equally likely Gaussians. means: [K, D]; std: [D], that of every component."""

    means: np.ndarray
    std: np.ndarray

    def log_density(self, x: torch.Tensor, s: float) -> torch.Tensor:
        """Of noisy states x [N, D], up to a constant; in torch, to differentiate it."""
        means, std = torch.tensor(self.means), torch.tensor(self.std)
        variance = ((1 - s) * std) ** 2 + s**2
        return torch.logsumexp(-0.5 * ((x[:, None] - (1 - s) * means) ** 2 / variance).sum(2), dim=1)

    def velocity(self, x: np.ndarray, s: float) -> np.ndarray:
        """E[noise | x] - E[data | x] of states x [N, D] at noise level s."""
        variance = ((1 - s) * self.std) ** 2 + s**2
        centres = (1 - s) * self.means
        likelihood = (x / variance) @ centres.T - 0.5 * (centres**2 / variance).sum(1)
        weights = np.exp(likelihood - likelihood.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        mean = weights @ self.means
        offset = (x - (1 - s) * mean) / variance
        return s * offset - (mean + (1 - s) * self.std**2 * offset)


def flow(data: Mixture, noise: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """States [levels, N, D] along the exact flow from noise [N, D] at levels[0] = 1; Runge-Kutta of order 4."""
    states = [noise]
    for s, s_next in pairwise(levels):
        x, h = states[-1], s_next - s
        k1 = data.velocity(x, s)
        k2 = data.velocity(x + h / 2 * k1, s + h / 2)
        k3 = data.velocity(x + h / 2 * k2, s + h / 2)
        k4 = data.velocity(x + h * k3, s_next)
        states.append(x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
    return np.stack(states)


# %% [markdown]
# Four kinds of data, all centred and of the noise's own size (root mean square 1 a coordinate), since latents of video
# autoencoders are scaled so:
#
# - **points**: nearly points ($\tau = 0.01$), as if the caption left no choice but between 8 videos;
# - **blobs**: the same 8 directions with spread around each ($\tau = 0.6$);
# - **thin**: a Gaussian on 1/16 of the coordinates, next to nothing on the others: data near a manifold;
# - **Gaussian**: one round Gaussian.

# %%
random = np.random.default_rng(0)


def directions(count: int) -> np.ndarray:
    """Centred points [count, D] with root mean square 1."""
    points = random.standard_normal((count, DIMENSIONS))
    points -= points.mean(0)
    return points / np.sqrt((points**2).mean())


thin = np.where(np.arange(DIMENSIONS) < DIMENSIONS // 16, 4.0, 0.01)
centre, eight = np.zeros((1, DIMENSIONS)), directions(8)
DATA = {
    "points": Mixture(eight, np.full(DIMENSIONS, 0.01)),
    "blobs": Mixture(0.8 * eight, np.full(DIMENSIONS, 0.6)),
    "thin": Mixture(centre, thin),
    "Gaussian": Mixture(centre, np.full(DIMENSIONS, 1.0)),
}

# One fine grid that holds every level of every power-law schedule: the flow in s is the same curve for all of them.
LEVELS = {p: (np.linspace(0, 1, NUM_STEPS + 1) ** p)[::-1] for p in EXPONENTS}
GRID = np.unique(np.concatenate([*LEVELS.values(), np.linspace(0, 1, 513), np.geomspace(1e-5, 1, 200)]))[::-1]
noise = random.standard_normal((PATHS, DIMENSIONS))
STATES = {name: flow(data, noise, GRID) for name, data in DATA.items()}

# %% [markdown]
# Is the velocity right? Two checks that share no code with it. Tweedie's formula takes the conditional mean of the data
# from the gradient of the log density, $E[x_0 \mid x] = (x + s^2\,\nabla \log p_s(x)) / (1 - s)$, here by automatic
# differentiation. And the flow must turn noise into the data: on "points", each path must end on one of the 8.

# %%
for name, data in DATA.items():
    for s in (0.05, 0.4, 0.9):
        x = torch.tensor(STATES[name][np.argmin(abs(GRID - s))], requires_grad=True)
        (gradient,) = torch.autograd.grad(data.log_density(x, s).sum(), x)
        state = x.detach().numpy()
        clean = (state + s**2 * gradient.numpy()) / (1 - s)
        by_tweedie = (state - (1 - s) * clean) / s - clean
        assert np.allclose(data.velocity(state, s), by_tweedie, atol=1e-8), name

ends = STATES["points"][-1]
to_points = np.sqrt(((ends[:, None] - eight) ** 2).mean(2))
assert to_points.min(1).max() < 0.02, "a path ended off the points"
for name in ("blobs", "thin", "Gaussian"):
    assert abs(np.sqrt((STATES[name][-1] ** 2).mean()) - 1) < 0.1, name
reached = len(set(to_points.argmin(1)))
print(f"{PATHS} paths end on {reached} of the 8 points, at most {to_points.min(1).max():.3f} away")

# %% [markdown]
# ## What makes L1_rel grow
#
# A short step from $s$ to $s - \Delta s$ changes the state by $v\,\Delta s$, so that
#
# $$\mathrm{L1_{rel}} = \Delta s \cdot g(s), \qquad g(s) = \|v(x, s)\|_1 / \|x\|_1.$$
#
# The two factors have nothing to do with each other. $\Delta s$ is the **schedule's**: for $\sigma = (t/T)^p$ and even
# steps in $t$ it is proportional to $s^{1 - 1/p}$, which along the process grows for $p < 1$, is constant for $p = 1$
# and shrinks for $p > 1$. $g$ is the **data's**: the same for every schedule. The product grows as $s$ falls if and
# only if
#
# $$\frac{d \ln g}{d \ln s} < \frac{1}{p} - 1 \quad \text{at every } s.$$
#
# **For $p > 1$ this is impossible**: the right side is negative, so $g$ would have to grow without bound towards $s =
# 0$, while it stays finite: $v$ is, and $x$ ends on a video that is not zero. L1_rel then falls to 0 at the clean end.
#
# **For $p \leq 1$ it depends on $g$**, and there are two ways to read "optimal velocity".

# %% [markdown]
# ### First reading: straight lines
#
# If the network knew $x_0$, each path would be a straight line with the constant velocity $\epsilon - x_0$: only the
# norm of $x = (1 - s)\,x_0 + s\,\epsilon$ develops. In many dimensions data and noise are orthogonal; with $\rho$ the
# data's root mean square over the noise's, the squared norm is proportional to $(1 - s)^2 \rho^2 + s^2$. It falls, *but
# only down to* $s = \rho^2/(1 + \rho^2)$, and rises again afterwards: a mixture of two unrelated signals is smaller
# than either. So $p = 1$ does not suffice. The largest $d \ln g / d \ln s$, found by setting its derivative to zero, is
# $(\sqrt{1 + \rho^2} - 1)/2$, and on straight lines the theorem holds up to
#
# $$p_c(\rho) = \frac{2}{1 + \sqrt{1 + \rho^2}}:$$
#
# 1 for data that vanish beside the noise, 0.83 for data as large as the noise.


# %%
def l1_rel(states: np.ndarray) -> np.ndarray:
    """[levels, N, D] to [levels - 1, N]."""
    return abs(np.diff(states, axis=0)).mean(2) / abs(states[:-1]).mean(2)


def grows_on_lines(p: float, size: float, steps: int = 400) -> bool:
    s = (np.linspace(0, 1, steps + 1) ** p)[::-1, None, None]
    line = (1 - s) * size * clean_long + s * noise_long
    return bool((np.diff(l1_rel(line)[:, 0]) > 0).all())


def largest_exponent(size: float) -> float:
    """By halving: on lines, a smaller p grows wherever a larger one does."""
    low, high = 0.3, 1.2
    for _ in range(9):
        p = (low + high) / 2
        low, high = (p, high) if grows_on_lines(p, size) else (low, p)
    return low


clean_long, noise_long = np.linalg.qr(random.standard_normal((4000, 2)))[0].T[:, None]  # orthogonal, of equal size
rows = []
for size in (0.25, 0.5, 1.0, 2.0):
    rows.append({"rho": size, "largest p that grows": largest_exponent(size), "p_c": 2 / (1 + np.sqrt(1 + size**2))})
lines = pd.DataFrame(rows)
display(lines.round(3))
assert np.allclose(lines["largest p that grows"], lines["p_c"], atol=0.02)

# %% [markdown]
# ### Second reading: the exact velocity
#
# A network does not know $x_0$, and the exact velocity $v(x, s)$ is a mean over what the data could still be. For
# centred data that spread in every direction at least a little (they have a smooth density), both ends are the same:
#
# - at $s = 1$ nothing is known: $E[x_0 \mid x] = 0$ and $\epsilon = x$, so that $v = x$ and **g = 1**;
# - at $s = 0$ everything is: $x_0 = x$ and $E[\epsilon \mid x] = 0$, so that $v = -x$ and again **g = 1**.
#
# With $p = 1$ and N short steps the first and the last one therefore change the state by the same 1/N. A curve that
# ends where it began cannot grow all along: **for p = 1 the theorem, read literally, holds for no such data.** In
# between $g$ does what it likes. For the round Gaussian the velocity vanishes half-way (the flow shrinks the cloud down
# to $s = \rho^2/(1 + \rho^2)$ and then stretches it again), so that no $p$ at all makes L1_rel grow throughout.

# %%
verdicts, figure = [], plt.figure(figsize=(9.5, 3.6), layout="constrained")
left, right = figure.subplots(1, 2)
for (name, data), colour in zip(DATA.items(), COLOURS, strict=False):
    speed = np.stack([abs(data.velocity(x, s)).mean(1) for x, s in zip(STATES[name], GRID, strict=True)])
    g = (speed / abs(STATES[name]).mean(2)).mean(1)
    left.plot(GRID, g, color=colour, label=name)
    assert abs(g[0] - 1) < 1e-6, name
    assert abs(g[-1] - 1) < 1e-6, name
    for p in EXPONENTS:
        change = l1_rel(STATES[name][np.searchsorted(-GRID, -LEVELS[p])])
        curve = change.mean(1)
        verdicts.append(
            {
                "data": name,
                "p": p,
                "grows throughout": bool((np.diff(curve) > 0).all()),
                "steps that grow": (np.diff(change, axis=0) > 0).mean(),
                "first": curve[0],
                "largest": curve.max(),
                "at step": curve.argmax(),
                "last": curve[-1],
            }
        )
for p, colour in zip(EXPONENTS, COLOURS, strict=True):
    right.plot(l1_rel(STATES["blobs"][np.searchsorted(-GRID, -LEVELS[p])]).mean(1), color=colour, label=f"p = {p:g}")
left.set(title="The data's factor g, exact velocity", xlabel="noise level s (denoising runs to the right)", ylabel="g")
left.invert_xaxis()
left.legend()
right.set(title=f"L1_rel of 'blobs' on {NUM_STEPS} steps", xlabel="step", ylabel="L1_rel", yscale="log")
right.legend(ncol=2)
plt.show()
verdicts = pd.DataFrame(verdicts)
display(verdicts.pivot(index="data", columns="p", values="steps that grow").loc[list(DATA)].round(2))

# %% [markdown]
# The table gives the share of steps in which L1_rel grows (1: in every step of every path). In the figure "points" and
# "thin" turn back to 1 only where $s$ comes near their smallest spread, which for $p = 1$ is in the last few of 64
# steps: until then they look like data without a density, whose $g$ ends above 1.

# %%
grows = verdicts.pivot(index="data", columns="p", values="grows throughout").loc[list(DATA)]
display(grows)
assert grows.loc[["points", "blobs", "thin"], 0.5].all()  # p well below 1: the schedule does it
assert not grows[[p for p in EXPONENTS if p >= 1]].any(axis=None)  # p = 1 and above: for no data
assert not grows.loc["Gaussian"].any()  # and for the Gaussian for no p
falling = verdicts[verdicts["p"] > 1]
assert (falling["last"] < 0.1 * falling["largest"]).all()  # p > 1 ends near 0, whatever the data
straight = verdicts[(verdicts["p"] == 1) & verdicts["data"].isin(["blobs", "Gaussian"])]
assert np.allclose(straight[["first", "last"]], 1 / NUM_STEPS, rtol=0.03)  # p = 1: begins and ends at one step's length

# %% [markdown]
# ## Corollary 1
#
# That a ratio differs where denominators differ is arithmetic. The question is its premise: *are* the updates about
# equal where the norms differ? Four chunks at the same $t$, with data of four sizes $\rho$. On "points" a late update
# is $\epsilon - x_0$, of size $\sqrt{1 + \rho^2}$, nearly equal for $\rho$ below 1, while the norm tends to $\rho$: the
# premise holds. On "blobs", whose spread scales along, $v$ tends to $-x$: **the update is proportional to the norm, and
# at the clean end all chunks have the same L1_rel, however much their norms differ.** At $s = 1$ all are noise and
# agree as well. (Points of spread 0.01 come to $-x$ too, at the very end.)

# %%
SIZES = (0.25, 0.5, 1.0, 2.0)
start, late, final = 1.0, 0.25, 0.0
grid = np.unique(np.concatenate([np.linspace(0, 1, 257), np.geomspace(1e-5, 1, 100)]))[::-1]
ratios, (figure, panels) = {}, plt.subplots(1, 2, figsize=(9.5, 3.4), sharey=True, layout="constrained")
for axes, kind in zip(panels, ("points", "blobs"), strict=True):
    for size, colour in zip(SIZES, COLOURS, strict=False):
        std = 0.01 if kind == "points" else 0.6 * size
        data = Mixture((1.0 if kind == "points" else 0.8) * size * eight, np.full(DIMENSIONS, std))
        states = flow(data, noise[:4], grid)
        update = np.array([abs(data.velocity(x, s)).mean() for x, s in zip(states, grid, strict=True)])
        norm = abs(states).mean((1, 2))
        axes.plot(grid, update / norm, color=colour, label=f"rho = {size:g}")
        for s in (start, late, final):
            at = np.argmin(abs(grid - s))
            ratios[kind, s, size] = {"norm": norm[at], "update": update[at], "L1_rel / Δs": update[at] / norm[at]}
    axes.set(title=f"L1_rel per unit of s, {kind}", xlabel="noise level s (denoising runs to the right)")
    axes.invert_xaxis()
    axes.legend()
panels[0].set_ylabel("|v| / |x|")
plt.show()
ratios = pd.DataFrame(ratios).T.rename_axis(["data", "s", "rho"])
display(ratios.round(2))

# %%
spread = ratios.groupby(["data", "s"]).agg(lambda values: values.max() / values.min())
assert spread.loc[("points", late), "L1_rel / Δs"] > 1.5  # the premise holds: the corollary does
small = ratios.loc["points"].xs(late, level="s").loc[[0.25, 0.5]]
assert small["update"].max() / small["update"].min() < 1.15
assert spread.loc[("blobs", final), "norm"] > 6  # norms far apart,
assert spread.loc[("blobs", final), "L1_rel / Δs"] < 1.01  # and the same L1_rel: the premise fails
assert (spread.xs(start, level="s")["L1_rel / Δs"] < 1.01).all()  # noise, all of it

# %% [markdown]
# ## What holds, and what does not
#
# With the exact velocity:
#
# - $p > 1$: L1_rel never grows to the end, for any data.
# - $p = 1$: it does not grow throughout, for any centred data with a density; it ends where it began.
# - $p < 1$: it grows if $p$ is small enough for the data and $v$ vanishes nowhere; on straight lines, for
#   $p \leq 2/(1 + \sqrt{1 + \rho^2})$. Then it is the growing step that makes it grow.
# - Chunks of different norm differ in L1_rel where their updates are equal (points), and not at the clean end of data
#   whose spread scales with their norm.
#
# The theorem holds once its assumptions say what the condition on $d \ln g / d \ln s$ says: $p$ below 1, and data that
# look like points to the sampler's steps. We checked the two statements as they are given at the top.
