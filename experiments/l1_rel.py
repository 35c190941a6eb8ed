"""L1_rel of every chunk over its steps (the paper's Fig. 2a), of inputs and of velocities, under two time grids.

``python -m experiments.l1_rel [num_prompts=8]`` runs vanilla with a probe. Theorem 1 of the paper says that the input's
relative change grows along the process; how much of that is the grid's own growing step is seen by running shift 3 (the
model's) and shift 1, and by dividing the change by the step's length.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from baselines.vanilla import VanillaConfig
from experiments import environment
from experiments.cli import check_overrides, compose_config
from experiments.errors import BadInput
from experiments.job import Job, make_job, refuse_random_weights
from experiments.records import code_hash, weights_hash
from experiments.results import save_figure, save_table, table_lines
from flowcache.policy import Decision
from flowcache.sampler import sample
from flowcache.schedule import Row

SHIFTS = (3.0, 1.0)


class Probe:
    """Called after every row: how far each chunk's latent and velocity moved since its step before."""

    def __init__(self, generation: Any, labels: dict[str, Any]) -> None:
        self.generation, self.labels = generation, labels
        self.latents: dict[int, torch.Tensor] = {}
        self.velocities: dict[int, torch.Tensor] = {}
        self.rows: list[dict[str, Any]] = []

    def __call__(self, row: Row, decision: Decision) -> None:
        for step in row.steps:
            latent = self.generation.features("latent", (step.chunk,))[0]
            velocity = self.generation.velocity(step.chunk).clone()
            if step.chunk in self.latents:
                self.rows.append(
                    {
                        **self.labels,
                        "row": row.index,
                        "chunk": step.chunk,
                        "step": step.step,
                        "t": step.t,
                        "dt": step.t_next - step.t,
                        "input": _relative(latent, self.latents[step.chunk]),
                        "velocity": _relative(velocity, self.velocities[step.chunk]),
                    }
                )
            self.latents[step.chunk], self.velocities[step.chunk] = latent, velocity


def _relative(now: torch.Tensor, before: torch.Tensor) -> float:
    return ((now - before).abs().mean() / before.abs().mean()).item()


def measure(job: Job) -> pd.DataFrame:
    """One row a chunk, step, prompt and shift."""
    environment.prepare(job.threads)
    model, frames = job.load_model(), []
    for shift in SHIFTS:
        for prompt in job.prompts:
            options = {**job.generation_options, "shift": shift}
            generation = model.generation(prompt, job.num_frames, VanillaConfig(), job.seed, **options)
            probe = Probe(generation, {"shift": shift, "prompt": prompt})
            for _ in sample(generation, VanillaConfig(), observe=probe):
                pass
            frames.append(pd.DataFrame(probe.rows))
            print(f"shift {shift:g}: {prompt}", flush=True)
    return pd.concat(frames, ignore_index=True)


def findings(data: pd.DataFrame) -> pd.DataFrame:
    """By shift and quantity: share of adjacent steps that grow, first, middle and last value, spread between chunks."""
    rows = []
    for shift, part in data.groupby("shift"):
        part = part.assign(input_per_dt=part["input"] / part["dt"])
        for quantity in ("input", "input_per_dt", "velocity"):
            by_step = part.groupby("step")[quantity].median()
            series = part.sort_values("step").groupby(["prompt", "chunk"])[quantity]
            growing = series.apply(lambda s: (s.diff().dropna() > 0).mean()).mean()
            # Concurrent chunks, and the same chunks compared at equal own step.
            concurrent = part.groupby(["prompt", "row"])[quantity].agg(lambda s: s.max() / s.min())
            equal_step = part.groupby(["prompt", "step"])[quantity].agg(lambda s: s.max() / s.min())
            rows.append(
                {
                    "shift": shift,
                    "quantity": quantity,
                    "growing_share": growing,
                    "first": by_step.iloc[0],
                    "middle": by_step.iloc[len(by_step) // 2],
                    "last": by_step.iloc[-1],
                    "median_ratio_of_concurrent_chunks": concurrent[concurrent > 1].median(),
                    "median_ratio_at_equal_own_step": equal_step.median(),
                }
            )
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame, source: str) -> str:
    """The findings as a table, with provenance."""
    rows = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row] for row in table.itertuples(index=False)]
    lines = [
        f"**L1_rel over the process.** Measured here ({source}). Relative L1 change of each chunk from its step "
        "before; growing share is the share of steps in which it grows, first, middle and last are medians at those "
        "steps, the ratios are the largest chunk's over the smallest's.",
        "",
        *table_lines([name.replace("_", " ") for name in table.columns], rows),
    ]
    return "\n".join(lines) + "\n"


def draw(data: pd.DataFrame) -> Figure:
    figure, grid = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    for axes_row, (shift, part) in zip(grid, sorted(data.groupby("shift"), reverse=True), strict=True):
        for axes, quantity in zip(axes_row, ("input", "velocity"), strict=True):
            for chunk, mine in part.groupby("chunk"):
                curve = mine.groupby("step")[quantity].median()
                axes.plot(curve.index, curve, label=f"chunk {chunk}", color=plt.colormaps["viridis"](chunk / 8), lw=1)
            axes.set_yscale("log")
            axes.set_title(f"L1_rel of the {quantity}, time grid with shift {shift:g}", fontsize=10)
            axes.set_xlabel("the chunk's own step")
            axes.grid(alpha=0.3)
    grid[0, 0].legend(fontsize=7, ncol=2)
    return figure


def main(arguments: list[str]) -> int:
    try:
        check_overrides(arguments)
        job = make_job(compose_config(["method=vanilla", *arguments]))
        refuse_random_weights(job, "distances say")
    except BadInput as error:
        print(f"l1_rel: {error}", file=sys.stderr)
        return 2
    data = measure(replace(job, metrics=()))
    stem, table = f"{job.model_name}_{job.setting_name}_l1_rel", findings(data)
    machine = environment.describe(job.device)
    source = (
        f"{job.model_name}, {job.setting_name}; {machine.get('gpu', machine['cpu'])}; weights "
        f"{weights_hash(job.checkpoint)}, code {code_hash()}; {len(job.prompts)} prompts"
    )
    save_table(stem, markdown(table, source), table)
    save_figure(draw(data), stem)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
