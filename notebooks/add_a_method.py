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
# # Adding a method
#
# `CONTRIBUTING.md` says what a method takes: a policy, a configuration, a YAML and a test. Here we write the first two
# in a notebook, run them through `flowcache.generate`, and compare with the trivial baseline **at equal compute**, the
# only fair comparison: whoever computes more looks better.
#
# **The idea.** A reused velocity grows stale with the *time* that passes, not with the number of steps. MAGI-1's steps
# are short at the noisy end and long at the clean end, so that `every_k`, which counts steps, leaves long gaps late.
# Our policy measures the gap on the clock of the flow: a chunk computes again once more than `gap` of its own time t (0
# noise, 1 clean) has passed since it computed last. It needs no distance and no look at the content.

# %%
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = next(folder for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "run.py").is_file())
os.chdir(ROOT)
sys.path.insert(0, str(ROOT))

import pandas as pd
import torch
from IPython.display import display
from matplotlib import pyplot as plt
from scipy.optimize import bisect

from baselines.every_k import EveryKConfig
from baselines.vanilla import VanillaConfig
from eval.psnr import psnr
from flowcache import MethodConfig, Trace, generate
from flowcache.distance import ChunkDistance
from flowcache.method import check_warmup
from flowcache.models.magi import Magi
from flowcache.policy import Decision, ReusePolicy
from flowcache.schedule import ChunkStep, Row, Schedule, staged_schedule, timesteps

# %matplotlib inline
plt.rcParams.update({"figure.dpi": 80, "font.size": 9, "axes.titlesize": 10})

# %% tags=["parameters"]
PROMPTS = (ROOT / "experiments" / "prompts" / "embedded.txt").read_text().splitlines()[:2]
NUM_CHUNKS, NUM_STEPS = 2, 64
EVERY, WARMUP_STEPS = 4, 5

# %% [markdown]
# ## 1. The policy and its configuration
#
# A policy sees numbers only: the row (its active chunks, each with its own step and times), distances if it asked for
# any (`distance = None`: it did not), and the schedule. It returns the chunks to compute; the others reuse. One policy
# object serves one generation, so it may keep state.


# %%
class EqualTime:
    distance: str | None = None

    def __init__(self, gap: float, warmup_steps: int) -> None:
        self.gap, self.warmup_steps = gap, warmup_steps
        self.accumulated: dict[int, float] = {}  # by chunk: own time since it computed last; goes into the trace

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        return Decision(tuple(step.chunk for step in row.steps if self._computes(step, schedule.num_steps)))

    def _computes(self, step: ChunkStep, num_steps: int) -> bool:
        passed = self.accumulated.get(step.chunk, 0.0) + (step.t_next - step.t)
        edge = step.step < max(1, self.warmup_steps) or step.step == num_steps - 1
        computes = edge or passed > self.gap
        self.accumulated[step.chunk] = 0.0 if computes else passed
        return computes


@dataclass(frozen=True, kw_only=True)
class EqualTimeConfig(MethodConfig):
    """Attributes: ``gap`` is the longest own time, of 1 in all, that a chunk reuses; 0 never reuses."""

    gap: float
    warmup_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gap <= 1:
            raise ValueError(f"gap={self.gap!r} must be between 0 (never reuses) and 1, a chunk's whole time")
        check_warmup(self.warmup_steps)

    def policy(self) -> ReusePolicy:
        return EqualTime(self.gap, self.warmup_steps)


# %% [markdown]
# Bad values are refused where the configuration is made, with one message:

# %%
try:
    EqualTimeConfig(gap=-1.0, warmup_steps=5)
except ValueError as error:
    print(error)
else:
    raise AssertionError("a negative gap was taken")

# %% [markdown]
# ## 2. Equal compute
#
# Because a policy sees numbers only, it can be asked without a model: we walk the schedule, count the chunk steps it
# would compute, and look for the `gap` that computes as many as `every_k`.

# %%
schedule = staged_schedule(NUM_CHUNKS, timesteps(NUM_STEPS))


def computed_steps(method: MethodConfig) -> int:
    policy = method.policy()
    return sum(len(policy.decide(row, {}, schedule).compute) for row in schedule.rows)


every_k = EveryKConfig(every=EVERY, warmup_steps=WARMUP_STEPS)
wanted = computed_steps(every_k)
gap = bisect(lambda gap: computed_steps(EqualTimeConfig(gap=gap, warmup_steps=WARMUP_STEPS)) - wanted - 0.5, 0.0, 0.5)
equal_time = EqualTimeConfig(gap=round(gap + 1e-4, 4), warmup_steps=WARMUP_STEPS)
print(f"every_k computes {wanted} of {schedule.num_chunk_steps} chunk steps")
print(f"equal_time with gap={equal_time.gap} computes {computed_steps(equal_time)}")
assert abs(computed_steps(equal_time) - wanted) <= NUM_CHUNKS  # one step a chunk is the finest there is

# %% [markdown]
# ## 3. Run it
#
# First what the test of every method checks: **"never reuse" is vanilla, bit for bit** (here on one chunk).

# %%
torch.set_num_threads(1)
model = Magi.from_pretrained(ROOT / "experiments" / "embedded" / "magi")
options = {"num_steps": NUM_STEPS, "height": 64, "width": 64}


def video(prompt: str, method: MethodConfig, num_chunks: int = NUM_CHUNKS) -> tuple[torch.Tensor, Trace]:
    """Frames [F, 64, 64, 3] and what happened."""
    trace = Trace()
    return torch.cat(list(generate(model, prompt, 24 * num_chunks, method, trace=trace, **options))), trace


never, trace = video(PROMPTS[0], EqualTimeConfig(gap=0.0, warmup_steps=0), num_chunks=1)
assert trace.computed_fraction == 1
assert torch.equal(never, video(PROMPTS[0], VanillaConfig(), num_chunks=1)[0])

# %% [markdown]
# Then both methods beside vanilla, same prompts and seed.

# %%
rows, traces = [], {}
for prompt in PROMPTS:
    reference, whole = video(prompt, VanillaConfig())
    for name, method in {"every_k": every_k, "equal_time": equal_time}.items():
        frames, traces[name] = video(prompt, method)
        rows.append(
            {
                "prompt": prompt,
                "method": name,
                "chunk steps": traces[name].computed_fraction,
                "compute left": traces[name].flops / whole.flops,
                "PSNR dB": psnr(frames.numpy(), reference.numpy()),
            }
        )
results = pd.DataFrame(rows)
display(results.pivot(index="prompt", columns="method").round(3))

# %%
figure, axes = plt.subplots(figsize=(9, 1.9), layout="constrained")
for y, (name, colour) in enumerate({"every_k": "#009E73", "equal_time": "#D55E00"}.items()):
    steps = [(entry.step, entry.t) for entry in traces[name].entries if entry.chunk == 0 and entry.action == "compute"]
    axes.plot([t for _, t in steps], [y] * len(steps), "|", markersize=16, color=colour)
    print(f"{name}: chunk 0 computes steps {[step for step, _ in steps]}")
axes.set(yticks=[0, 1], yticklabels=["every_k", "equal_time"], ylim=(-0.6, 1.6))
axes.set_xlabel("own time t of the chunk (0 noise, 1 clean)")
axes.set_title("When chunk 0 computes")
plt.show()

# %%
share = results.pivot(index="prompt", columns="method", values="compute left")
assert (abs(share["equal_time"] / share["every_k"] - 1) < 0.05).all(), "not at equal compute"
quality = results.pivot(index="prompt", columns="method", values="PSNR dB")
gain = quality["equal_time"] - quality["every_k"]
print("equal_time minus every_k, dB:", ", ".join(f"{value:+.1f}" for value in gain))

# %% [markdown]
# A gain on two short videos says little, in either direction: `python run.py -m method=...` with 64 prompts and
# intervals decides (`read_results` shows how to read them). What is left to make it a method of the suite:
#
# - move the two classes to `baselines/equal_time.py`;
# - write `conf/method/equal_time.yaml`: `_target_: baselines.equal_time.EqualTimeConfig` and every option with its
#   default, as in `conf/method/every_k.yaml`; `python run.py method=equal_time method.gap=0.05` works from there on;
# - turn the assertions above into `tests/baselines/test_equal_time.py`.
