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
# # A first run
#
# From the main job to the library alone, on the small MAGI-1 whose weights are in this repository. Nothing is
# downloaded. We make two short videos, vanilla and with FlowCache's reuse, and look at everything
# that the job leaves behind.

# %%
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = next(folder for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "run.py").is_file())
os.chdir(ROOT)
sys.path.insert(0, str(ROOT))

import numpy as np
import pandas as pd
import torch
from IPython.display import display
from matplotlib import pyplot as plt
from matplotlib.colors import BoundaryNorm, ListedColormap

from eval.psnr import psnr
from eval.video_io import read_lossless
from experiments.job.cli import compose_config
from experiments.job.job import make_job
from experiments.run.runner import Runner
from flowcache import Chunkwise, Method, Trace, generate
from flowcache.models.magi import Magi

# %matplotlib inline
plt.rcParams.update({"figure.dpi": 80, "font.size": 9, "axes.titlesize": 10})

# %% tags=["parameters"]
OUTPUT_DIR = Path(os.environ.get("NOTEBOOK_OUTPUT_DIR", "outputs/notebooks")) / "first_run"
NUM_FRAMES = 72  # 3 chunks of 24; the usual length is 192
OPTIONS = [
    "method=flowcache_fast",
    "num_prompts=2",
    f"setting.num_frames={NUM_FRAMES}",
    "metrics=[psnr,ssim,caption]",
    "workers=1",  # for two short videos a second process is not worth its start
    "threads=1",
    f"output_dir={OUTPUT_DIR}",
]

# %% [markdown]
# ## The main job
#
# What `python run.py model=magi method=flowcache_fast ...` does on the command line: vanilla's and the method's videos
# for each prompt, metrics, records, a summary. A finished video is never made twice: run the cell again and it only
# prints. (`wandb.mode=disabled` leaves out the offline W&B run.)

# %%
OUTPUT_DIR.mkdir(parents=True, exist_ok=True)
command = [sys.executable, "run.py", "model=magi", *OPTIONS, "wandb.mode=disabled"]
plain = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}  # Jupyter's; a pipe has no colours
done = subprocess.run(command, capture_output=True, encoding="utf-8", env={**plain, "COLUMNS": "110"})
assert done.returncode == 0, done.stderr
print(done.stdout)

# %% [markdown]
# **Compute left** is the share of vanilla's executed FLOPs, the speed-up is vanilla's time over the method's on the
# same prompt, back to back. PSNR and SSIM compare with vanilla's own video of the prompt and seed. Two short videos are
# a demonstration, no measurement (`results/` has 64 prompts), and times count only on a machine with nothing else to
# do.
#
# ## One record
#
# Every video has a JSON record, found by a hash of all that decides its pixels.

# %%
job = make_job(compose_config(OPTIONS))
runner = Runner(job)
record = runner.records(job.prompts)[0]
vanilla = Runner(make_job(compose_config([*OPTIONS, "method=vanilla"]))).records(job.prompts)[0]
document = json.loads(runner.store.record_path(record.key).read_text(encoding="utf-8"))
wanted = ("prompt", "method", "seed", "status", "computed_fraction", "flops", "baseline_flops", "metrics", "caption")
print(json.dumps({key: document[key] for key in wanted}, indent=1))
assert document["status"] == "finished"
assert record.flops < vanilla.flops == record.baseline_flops

# %% [markdown]
# ## One trace
#
# The trace tells row by row what happened to each chunk. A *row* is one pass of the sampler; MAGI-1 denoises up to 4
# chunks at once, each a quarter of the schedule behind the one before. FlowCache lets every chunk decide by its own
# accumulated distance: its first steps always compute (warm-up); then, while the steps are short, neighbouring ones
# resemble each other and the last velocity is reused; as the steps grow longer reuse becomes rarer and ends.

# %%
trace = pd.read_parquet(runner.store.trace_path(record.key))
display(trace.iloc[[0, 40, 100]][["row", "chunk", "step", "t", "action", "distance", "accumulated", "flops"]])

num_rows, num_chunks = trace["row"].max() + 1, trace["chunk"].max() + 1
actions = np.zeros((num_chunks, num_rows))
actions[trace["chunk"], trace["row"]] = trace["action"].map({"compute": 2, "reuse": 1})
figure, axes = plt.subplots(figsize=(9, 2.2), layout="constrained")
colours = ListedColormap(["white", "#56B4E9", "#D55E00"])
image = axes.imshow(actions, aspect="auto", cmap=colours, norm=BoundaryNorm([-0.5, 0.5, 1.5, 2.5], 3))
axes.set(xlabel="row (one pass of the sampler)", ylabel="chunk", yticks=range(num_chunks))
axes.set_title(f"{record.method}: {record.computed_fraction:.0%} of the chunk steps computed")
bar = figure.colorbar(image, ticks=[0, 1, 2])
bar.ax.set_yticklabels(["not active", "reuse", "compute"])
plt.show()
assert (trace["action"] == "compute").mean() == record.computed_fraction < 1
assert set(trace.loc[trace["step"] < job.method.reuse.warmup_steps, "action"]) == {"compute"}

# %% [markdown]
# ## The frames
#
# Vanilla above, FlowCache in the middle, their difference below, enlarged until its largest value is white.

# %%
frames = read_lossless(runner.store.video_path(record.key))
reference = read_lossless(runner.store.video_path(vanilla.key))
assert frames.shape == reference.shape == (NUM_FRAMES, 64, 64, 3)
assert round(psnr(frames, reference), 6) == round(record.metrics["psnr"], 6)
difference = abs(frames.astype(int) - reference)
factor = 255 // max(1, difference.max())
rows = {"vanilla": reference, record.method: frames, f"difference x {factor}": factor * difference}
shown = range(6, NUM_FRAMES, 12)  # two frames of every chunk
figure, panels = plt.subplots(3, 1, figsize=(7, 4.2), layout="constrained")
for axes, (label, video) in zip(panels, rows.items(), strict=True):
    axes.imshow(np.concatenate([video[i] for i in shown], axis=1))
    axes.set_ylabel(label)
    axes.set(xticks=[32 + 64 * i for i in range(len(shown))], xticklabels=[f"frame {i}" for i in shown], yticks=[])
figure.suptitle(f"{record.prompt!r}: PSNR {record.metrics['psnr']:.1f} dB", fontsize=10)
plt.show()

# %% [markdown]
# ## The library alone
#
# `flowcache` knows nothing of configuration files, records or metrics. `generate` yields each chunk's frames as soon as
# they are decoded, and fills a trace if it is given one. The same prompt and seed give the same video as the job did.

# %%
model = Magi.from_pretrained(ROOT / "experiments" / "embedded" / "magi")
method = Method(reuse=Chunkwise(threshold=0.015, warmup_steps=5))
mine = Trace()
chunks = []
for chunk_frames in generate(model, record.prompt, NUM_FRAMES, method, trace=mine, num_steps=64, height=64, width=64):
    chunks.append(chunk_frames)
    print(f"chunk {len(chunks) - 1}: {tuple(chunk_frames.shape)} {chunk_frames.dtype}")
print(f"{mine.computed_fraction:.0%} of the chunk steps computed, {mine.flops / 1e9:.0f} GFLOPs")
assert torch.equal(torch.cat(chunks), torch.from_numpy(frames))
assert mine.flops == record.flops

# %% [markdown]
# Next: `add_a_method` (a policy of your own), `read_results` (comparing methods), `theorem_1` (when reuse should work,
# and when not).
