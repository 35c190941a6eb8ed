"""How far rounding alone moves a video: vanilla against itself, of a noise moved by a millionth or in bfloat16.

``python -m experiments.floor [model=magi] [num_prompts=32]``: no method can be told nearer to vanilla than this (on
SkyReels-V2 vanilla_kv, which methods are compared with at equal compute).
On some prompts a difference far below what is seen turns the video into another one, and such prompts carry the mean of
whatever is compared. Each prompt's video is made as it is, with every number that is drawn moved by a normal one of
1e-6 and of 1e-4, and with matrix products in bfloat16. The table goes to output_dir/tables/ (``publish=true``: into
results/), and figures show its first row as a line.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from eval.latent_error import latent_snr_db
from eval.psnr import psnr
from eval.statistics import share_and_interval
from experiments.job.cli import check_overrides, compose_config
from experiments.job.errors import command
from experiments.job.job import Job, make_job, refuse_random_weights
from experiments.records import weights_id
from experiments.run import environment
from experiments.run.model_pool import model_pool
from experiments.show.attention import causal_baseline
from experiments.show.results import Column, Table, destination, made_by, publishing
from flowcache.sampler import sample

MOVED = (1e-6, 1e-4)  # standard deviations of what is added to the noise, itself of 1
LEVELS_DB = (60, 50, 40, 30)


class MovedNoise(TorchFunctionMode):
    """Adds a normal number of a standard deviation ``size`` to each that ``torch.randn`` draws."""

    def __init__(self, size: float, seed: int) -> None:
        super().__init__()
        self._size, self._generator = size, torch.Generator().manual_seed(seed)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        drawn = func(*args, **(kwargs or {}))
        if func is torch.randn:
            with torch._C.DisableTorchFunction():
                drawn = drawn + self._size * torch.randn(drawn.shape, generator=self._generator)
        return drawn


def made(job: Job, model: Any, prompt: str, moved: float = 0.0, half: bool = False) -> tuple[np.ndarray, Tensor]:
    """A prompt's video, uint8 [F, H, W, 3], and its latents, [chunks, C, f, h, w] or as the chunks are wide."""
    drawing: AbstractContextManager = MovedNoise(moved, job.seed + 1) if moved else nullcontext()
    with drawing:
        generation = model.generation(prompt, job.num_frames, job.method, job.seed, **job.generation_options)
    frames, latents = [], []
    with torch.autocast(job.device.partition(":")[0], torch.bfloat16, enabled=half):
        for chunk, latent in sample(generation):
            latents.append(latent.cpu())
            with torch.inference_mode(), torch.autocast(job.device.partition(":")[0], enabled=False):
                frames.append(generation.decode(chunk, latent).cpu().numpy())
    return np.concatenate([each for each in frames if len(each)]), torch.cat(latents, dim=1)


def compared(job: Job, model: Any, prompt: str) -> list[dict[str, Any]]:
    """A row a way of moving the video."""
    video, latents = made(job, model, prompt)
    rows = []
    for name, options in ways().items():
        other, other_latents = made(job, model, prompt, **options)
        rows.append(
            {
                "way": name,
                "prompt": prompt,
                "psnr": psnr(other, video),
                "latent_snr_db": latent_snr_db(other_latents, latents),
            }
        )
    return rows


def ways() -> dict[str, dict[str, Any]]:
    """Options of ``made``, by the name that the table says."""
    return {f"noise moved by {size:.0e}": {"moved": size} for size in MOVED} | {"bfloat16 products": {"half": True}}


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a way: median, least and mean over prompts, and how many are over so many dB."""
    rows = []
    for way, own in frame.groupby("way", sort=False):
        values = list(own["psnr"])
        row = {
            "way": way,
            "n": len(own),
            "median_db": statistics.median(values),
            "least_db": min(values),
            "mean_capped_db": statistics.mean(min(value, 60.0) for value in values),
            "latent_mean_db": own["latent_snr_db"].mean(),
            "mean_db": statistics.mean(values) if all(map(math.isfinite, values)) else math.inf,
            "latent_median_db": own["latent_snr_db"].median(),
        }
        for level in LEVELS_DB:
            key = f"over_{level}_db"
            row[key], row[f"{key}_low"], row[f"{key}_high"] = share_and_interval([v >= level for v in values])
        rows.append(row)
    return pd.DataFrame(rows)


def table(found: pd.DataFrame, source: str) -> Table:
    """Of a ``summary``."""
    columns = [
        Column("made with", "way"),
        Column("n", "n"),
        Column("median PSNR dB", "median_db", "{:.1f}"),
        Column("mean", "mean_db", "{:.1f}"),
        Column("mean, each at most 60", "mean_capped_db", "{:.1f}"),
        Column("least", "least_db", "{:.1f}"),
        Column("latents, median dB", "latent_median_db", "{:.1f}"),
    ]
    columns += [
        Column(
            f"{level} dB or more",
            f"over_{level}_db",
            "{:.0%}",
            f"{{over_{level}_db_low:.0%}} to {{over_{level}_db_high:.0%}}",
        )
        for level in LEVELS_DB
    ]
    return Table(
        "What rounding does to a video.",
        f"Measured here ({source}). Against the same prompt's own video; identical ones have infinitely many dB.",
        tuple(columns),
        found,
        (),
    )


@command("floor")
def main(arguments: Sequence[str]) -> int:
    publish, overrides = publishing(arguments)
    check_overrides(overrides)
    job = make_job(compose_config(["method=vanilla", *overrides]))
    if not any(override.startswith("method=") for override in overrides):
        method = causal_baseline(job.model_name) or job.method_name
        job = make_job(compose_config([f"method={method}", *overrides]))
    refuse_random_weights(job, "quality says")
    rows: list[dict[str, Any]] = []
    with model_pool(job) as map_model:
        for own in map_model(compared, job.prompts):
            rows += own
            print(own[0]["prompt"] + ": " + ", ".join(f"{row['way']} {row['psnr']:.1f} dB" for row in own), flush=True)
    machine = environment.describe(job.device)
    source = (
        f"{job.model_name}, {job.setting_name}, {job.method_name}; {machine.get('gpu', machine['cpu'])}; "
        f"seed {job.seed}; {made_by()}; weights {weights_id(job)}"
    )
    to = destination(job.output_dir, publish)
    found = summary(pd.DataFrame(rows)).assign(method=job.method_name, weights=weights_id(job))
    to.save_table(f"{job.model_name}_{job.setting_name}_floor", table(found, source))
    return 0
