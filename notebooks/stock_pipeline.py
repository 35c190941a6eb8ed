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
# # A method on a stock pipeline of diffusers
#
# SkyReels-V2's diffusion-forcing pipeline, as diffusers has it, with small trained weights of this repository. Two
# lines put a caching method on it; chunks then decide for themselves whether they compute.

# %%
import os
import sys
import warnings
from pathlib import Path

ROOT = next(folder for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "run.py").is_file())
os.chdir(ROOT)
sys.path.insert(0, str(ROOT))
warnings.filterwarnings("ignore", message="the plan skyreels_embedded was made for another grid")

import numpy as np
import torch
import transformers
from matplotlib import pyplot as plt

transformers.utils.logging.set_verbosity_error()  # before diffusers, which looks for torchvision through it

import diffusers

from flowcache import generate, named
from flowcache.integrations.diffusers import apply_flowcache
from flowcache.models.skyreels import SkyReels

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()

# %matplotlib inline
plt.rcParams.update({"figure.dpi": 80, "font.size": 9, "axes.titlesize": 10})

# %%
pipe = diffusers.SkyReelsV2DiffusionForcingPipeline.from_pretrained(
    "experiments/embedded/skyreels", dtype=torch.float32
)
pipe.set_progress_bar_config(disable=True)

SETTINGS = {"num_frames": 57, "height": 64, "width": 64, "num_inference_steps": 16, "guidance_scale": 2.0}
CHUNKS = {"ar_step": 5, "causal_block_size": 5}  # block-causal: no chunk sees later ones
PROMPT = "a red circle moving right on a dark background"


def video() -> np.ndarray:
    """Float [F, H, W, 3] in 0 to 1."""
    return pipe(PROMPT, **SETTINGS, **CHUNKS, generator=torch.Generator().manual_seed(0), output_type="np").frames[0]


stock = video()

# %% [markdown]
# The two lines are `apply_flowcache(pipe, name)` and the pipeline's own call. `vanilla` computes every chunk in every
# step, but finished chunks only once, through a KV cache: the same video.

# %%
made, traces = {}, {}
for name in ("vanilla", "flowcache_fast", "flowcast_fast", "flowcast_online"):
    with apply_flowcache(pipe, name, setting="embedded") as cache:
        made[name] = video()
    traces[name] = cache.trace


def psnr(frames: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(frames - stock).mean()))


for name, frames in made.items():
    trace = traces[name]
    print(
        f"{name:16} computes {trace.computed_fraction:.2f} of all chunk steps, {trace.flops / 1e9:6.1f} GFLOPs", end=""
    )
    print(f", {psnr(frames):5.1f} dB to stock" if name != "vanilla" else ", equal to stock to rounding")

assert np.abs(made["vanilla"] - stock).max() < 1e-3
assert np.array_equal(video(), stock), "taken off, it leaves nothing behind"
assert all(traces[name].computed_fraction < 1 for name in made if name != "vanilla")

# %% [markdown]
# Which chunk computed in which row (dark), for each method. SkyReels-V2 starts a chunk `ar_step` rows after
# the one before.

# %%
figure, axes = plt.subplots(1, len(traces), figsize=(11, 1.9), sharey=True)
for axis, (name, trace) in zip(axes, traces.items(), strict=True):
    shown = np.full((3, 1 + max(entry.row for entry in trace.entries)), np.nan)
    for entry in trace.entries:
        shown[entry.chunk, entry.row] = entry.action == "compute"
    axis.imshow(shown, aspect="auto", cmap="Blues", vmin=-0.3, vmax=1.2, interpolation="nearest")
    axis.set(title=name, xlabel="row", yticks=range(3))
axes[0].set_ylabel("chunk")
plt.show()

# %%
figure, axes = plt.subplots(len(made) + 1, 6, figsize=(8, 1.4 * (len(made) + 1)))
for row, (name, frames) in zip(axes, {"stock": stock, **made}.items(), strict=True):
    for axis, frame in zip(row, np.linspace(0, len(frames) - 1, 6).astype(int), strict=True):
        axis.imshow(frames[frame].clip(0, 1))
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")
plt.show()

# %% [markdown]
# `SkyReels.from_pipe` gives the suite's own pipeline over the same weights: frames come chunk by chunk. It takes the
# released code's time table, which begins a little lower than diffusers', and no corrector that looks at a latent that
# was written over. So its videos are not the stock pipeline's to the bit; `docs/diffusers.md` lists what differs.

# %%
model = SkyReels.from_pipe(pipe, **CHUNKS, base_num_frames=97, overlap_history=17)
options = {"num_steps": 16, "guidance_scale": 2.0, "height": 64, "width": 64}
chunks = list(generate(model, PROMPT, 57, named("flowcast_fast", "skyreels", "embedded"), seed=0, **options))
print([len(frames) for frames in chunks])
assert [len(frames) for frames in chunks] == [17, 20, 20]
