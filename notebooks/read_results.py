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
# # Reading results
#
# Two sources: the tables in `results/tables/`, made from records and committed, and the records of your own runs. This
# notebook reads both, draws quality against compute, and shows how to tell whether one method is better than another on
# the same prompts.

# %%
import os
import sys
from pathlib import Path

ROOT = next(folder for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "run.py").is_file())
os.chdir(ROOT)
sys.path.insert(0, str(ROOT))

import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib import pyplot as plt
from scipy import stats

from eval.statistics import NUM_RESAMPLES, SEED, mean_and_interval, paired_difference
from experiments.job.cli import compose_config
from experiments.job.errors import BadInput
from experiments.job.job import make_job
from experiments.records.collect import collect
from experiments.run.workers import run_jobs
from experiments.show.reported import read_reported
from experiments.show.results import TABLES

# %matplotlib inline
plt.rcParams.update({"figure.dpi": 80, "font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.titlesize": 10})
COLOURS = {"flowcache": "#0072B2", "teacache": "#E69F00", "every_k": "#009E73"}
MARKERS = {"flowcache": "o", "teacache": "s", "every_k": "^"}

# %% tags=["parameters"]
OUTPUT_DIR = Path(os.environ.get("NOTEBOOK_OUTPUT_DIR", "outputs/notebooks")) / "read_results"
NUM_PROMPTS, NUM_FRAMES = 6, 48  # small enough to be made at once where there are no records yet
SETTING = [
    f"num_prompts={NUM_PROMPTS}",
    f"setting.num_frames={NUM_FRAMES}",
    "metrics=[psnr]",
    "latency_pairs=0",
    "workers=1",
    "threads=1",
]
METHODS = [
    ["method=vanilla"],
    ["method=flowcache_fast", "reuse.threshold=0.03"],
    ["method=flowcache_fast", "reuse.threshold=0.06"],
    ["method=every_k", "reuse.every=2"],
    ["method=every_k", "reuse.every=3"],
]

# %% [markdown]
# ## Committed tables
#
# Every table is a CSV beside a Markdown file that says model, setting, machine and number of videos. Figures measured
# here and figures reported by papers never share a row.

# %%
measured = pd.read_csv(TABLES / "magi_embedded_main.csv")
columns = ["method", "n", "compute_left", "speedup", "psnr", "psnr_ci95", "ssim", "lpips", "caption_right"]
display(measured[columns].round(3))
reported, source = read_reported("magi")
print(f"Reported by {source}:")
display(reported)

# %% [markdown]
# ## Your records
#
# `collect` gives one row a finished video, of one setting, made with today's code and weights: one table shows one
# program. Where there is none it says so, and we make the few that are needed. Any job's records can be read
# so; leave `SETTING` and `output_dir` out for those of plain `python run.py`.

# %%
OUTPUT_DIR.mkdir(parents=True, exist_ok=True)
jobs = [make_job(compose_config([*SETTING, f"output_dir={OUTPUT_DIR}", *method])) for method in METHODS]
try:
    frame = collect(jobs[0])
except BadInput as error:
    print(error)
    frame = pd.DataFrame(columns=["prompt"])
if len(frame) < len(METHODS) * NUM_PROMPTS:
    run_jobs(jobs, jobs[0].prompts)
    frame = collect(jobs[0])
print(f"{len(frame)} videos of {frame['prompt'].nunique()} prompts")

# %%
frame["option"] = frame["reuse.threshold"].fillna(frame["reuse.every"])
frame["psnr"] = pd.to_numeric(frame["psnr"]).clip(upper=80.0)  # identical videos would be infinite
videos = frame[frame["method"] != "vanilla"]
summary = videos.groupby(["method", "option"]).agg(
    n=("psnr", "size"),
    compute_left=("flops_share", "mean"),
    psnr=("psnr", "mean"),
    half_width=("psnr", lambda values: mean_and_interval(list(values))[1]),
)
display(summary.round(3))
assert len(summary) == len(METHODS) - 1
assert (summary["n"] == NUM_PROMPTS).all()
for method, curve in summary.groupby("method"):
    ordered = curve.sort_values("compute_left")
    assert ordered["psnr"].is_monotonic_increasing, f"{method}: more compute, and further from vanilla"

# %% [markdown]
# ## Quality against compute
#
# A method is better where its curve is higher *at the same compute*; two single points compare only when one is both
# higher and further left. The two panels are different settings: they do not compare with each other.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
for family in ("teacache", "flowcache"):
    mine = measured[measured["method"].str.startswith(family)].sort_values("compute_left")
    style = {"color": COLOURS[family], "marker": MARKERS[family], "capsize": 2, "label": family}
    left.errorbar(mine["compute_left"], mine["psnr"], yerr=mine["psnr_ci95"], **style)
left.set(
    title=f"Committed main table: {measured['n'].max()} prompts, 192 frames, 64 steps", ylabel="PSNR to vanilla, dB"
)
for method, curve in summary.sort_values("compute_left").groupby("method"):
    family = method.removesuffix("_fast")
    style = {"color": COLOURS[family], "marker": MARKERS[family], "capsize": 2, "label": family}
    right.errorbar(curve["compute_left"], curve["psnr"], yerr=curve["half_width"], **style)
right.set(title=f"These records: {NUM_PROMPTS} prompts, {NUM_FRAMES} frames, 64 steps")
for axes in (left, right):
    axes.set_xlabel("compute left (share of vanilla's executed FLOPs)")
    axes.legend()
plt.show()

# %% [markdown]
# ## Is one method better than another?
#
# Prompts differ more than methods do: a shape that stays still is easy for everybody. Compare methods **prompt by
# prompt**: the differences are free of what a prompt does to both. Their mean comes with a bootstrap interval: resample
# the prompts with replacement, take the mean again, 9999 times; 95 % of the means lie inside. An interval that holds 0
# shows nothing.

# %%
shares = summary["compute_left"]
pairs = [(a, b) for a in shares["flowcache_fast"].index for b in shares["every_k"].index]
closest = min(pairs, key=lambda pair: abs(shares["flowcache_fast", pair[0]] - shares["every_k", pair[1]]))
by_prompt = videos.pivot(index="prompt", columns=["method", "option"], values="psnr")
a, b = by_prompt["flowcache_fast", closest[0]], by_prompt["every_k", closest[1]]
difference = (a - b).to_numpy()

interval = stats.bootstrap(
    (difference,), np.mean, n_resamples=NUM_RESAMPLES, method="percentile", rng=SEED
).confidence_interval
print(f"flowcache threshold={closest[0]:g}: compute left {shares['flowcache_fast', closest[0]]:.3f}")
print(f"every_k every={closest[1]:g}: compute left {shares['every_k', closest[1]]:.3f}")
print(f"PSNR difference {difference.mean():+.2f} dB, 95 % interval {interval.low:+.2f} to {interval.high:+.2f}")
# The suite's tables use the same function.
assert paired_difference(list(a), list(b)) == (difference.mean(), interval.low, interval.high)
assert interval.low <= difference.mean() <= interval.high

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), width_ratios=[2, 1], layout="constrained")
left.plot([0, 1], [a, b], "o-", color="0.4", markersize=4, linewidth=0.8)
labels = [f"flowcache\nthreshold {closest[0]:g}", f"every_k\nevery {closest[1]:g}"]
left.set(xticks=[0, 1], xticklabels=labels, xlim=(-0.3, 1.3), ylabel="PSNR to vanilla, dB", title="A line a prompt")
right.plot(np.zeros(len(difference)), difference, "o", color="0.4", markersize=4)
ends = [[difference.mean() - interval.low], [interval.high - difference.mean()]]
right.errorbar(0.4, difference.mean(), yerr=ends, fmt="D", color="#D55E00", capsize=4)
right.axhline(0, color="0.3", linewidth=0.8)
right.set(
    xticks=[0, 0.4], xticklabels=["a prompt", "mean and\n95 % interval"], xlim=(-0.3, 0.7), ylabel="difference, dB"
)
right.set_title("Prompt by prompt")
plt.show()

# %% [markdown]
# What pairing gains: had the two methods been run on *different* prompts, the interval of the difference of means would
# be as wide as this.

# %%
unpaired = stats.bootstrap(
    (a.to_numpy(), b.to_numpy()),
    lambda x, y, axis: x.mean(axis) - y.mean(axis),
    n_resamples=NUM_RESAMPLES,
    method="percentile",
    rng=SEED,
).confidence_interval
print(f"paired   {interval.low:+.2f} to {interval.high:+.2f} dB")
print(f"unpaired {unpaired.low:+.2f} to {unpaired.high:+.2f} dB")
correlation = np.corrcoef(a, b)[0, 1]
print(f"correlation of the two methods over prompts: {correlation:.2f}")

# %% [markdown]
# Two cautions. Six prompts are too few for a claim, and a bootstrap of few values is too narrow: the tables use 64.
# And the pair compared here is the closest there is, not equal: sweep the option and compare curves
# (`python -m experiments.sweep experiment=reuse_curve && python -m experiments.figures`).
