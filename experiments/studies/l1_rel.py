"""L1_rel of every chunk over the process (the paper's Fig. 2), of inputs and of velocities, under two time grids.

``python -m experiments.l1_rel [model=magi] [num_prompts=8]`` runs vanilla with a probe, once: what it measures is kept
in output_dir/l1_rel/, and a rerun only draws, to output_dir/tables/ and output_dir/figures/ (``publish=true``: into
results/ instead). Theorem 1 of the paper says that the input's relative change grows
along the process; how much of that is the grid's own growing step is seen by running the model's own shift and shift 1,
and by dividing the change by the step's length.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from eval.atomic import atomic_path
from eval.statistics import mean_and_interval
from experiments.job.cli import check_overrides, compose_config
from experiments.job.errors import BadInput, command
from experiments.job.job import Job, make_job, refuse_random_weights
from experiments.job.units import counted
from experiments.records import new_record, weights_id
from experiments.run import environment
from experiments.run.runner import Runner
from experiments.show.results import Column, Table, destination, made_by, publishing
from experiments.show.style import COLUMN_WIDTH_IN, styled
from flowcache.method import VANILLA
from flowcache.reuse.base import Decision
from flowcache.sampler import sample
from flowcache.schedule import Row

OWN = "own"
SHIFTS: dict[str, dict[str, float]] = {OWN: {}, "1": {"shift": 1.0}}  # time grids: options instead of the job's
_TIMESTEPS = 1000.0  # in the whole process, of a model that counts time in them (SkyReels-V2)
_FOUND = {
    "growing_share": "growing share",
    "first": "first",
    "middle": "middle",
    "last": "last",
    "median_ratio_of_concurrent_chunks": "ratio of concurrent chunks",
    "median_ratio_at_equal_own_step": "ratio at equal own step",
}


class Probe:
    """Called after every row: how far each chunk's latent and velocity moved since its step before.

    Velocities only of models that step by one (MAGI-1); SkyReels-V2's solver mixes several.
    """

    def __init__(self, generation: Any, labels: dict[str, Any]) -> None:
        self.generation, self.labels = generation, labels
        self.latents: dict[int, torch.Tensor] = {}
        self.velocities: dict[int, torch.Tensor] = {}
        self.rows: list[dict[str, Any]] = []
        longest = max(step.t for row in generation.schedule.rows for step in row.steps)
        self._process = _TIMESTEPS if longest > 1 else 1.0

    def __call__(self, row: Row, decision: Decision) -> None:
        for step in row.steps:
            latent = self.generation.features("latent", (step.chunk,))[0]
            measured = {"input": (latent, self.latents)}
            if hasattr(self.generation, "velocity"):
                measured["velocity"] = (self.generation.velocity(step.chunk).clone(), self.velocities)
            if step.chunk in self.latents:
                self.rows.append(
                    {
                        **self.labels,
                        "row": row.index,
                        "chunk": step.chunk,
                        "step": step.step,
                        "t": step.t,
                        "dt": abs(step.t_next - step.t) / self._process,
                        **{name: _relative(now, before[step.chunk]) for name, (now, before) in measured.items()},
                    }
                )
            for now, before in measured.values():
                before[step.chunk] = now


def _relative(now: torch.Tensor, before: torch.Tensor) -> float:
    return ((now - before).abs().mean() / before.abs().mean()).item()


def measured(job: Job) -> pd.DataFrame:
    """One row a chunk, step, prompt and shift; measured once and kept. Raises BadInput where that is damaged."""
    keys = " ".join([*SHIFTS, *(new_record(job, "vanilla", VANILLA, prompt).key for prompt in job.prompts)])
    path = job.output_dir / "l1_rel" / f"{hashlib.sha256(keys.encode()).hexdigest()[:20]}.parquet"
    if job.force or not path.is_file():
        data = measure(job)
        with atomic_path(path) as temporary:
            data.to_parquet(temporary)
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError, TypeError, LookupError, NotImplementedError) as error:
        raise BadInput(f"{path} is damaged ({error}); give force=true, which measures again") from error


def measure(job: Job) -> pd.DataFrame:
    """One row a chunk, step, prompt and shift: row of the sampler, time t as the model counts it, the step's share dt
    of the whole process, relative change of the input, and of the velocity where there is one."""
    Runner(job).check(job.prompts[0])
    environment.prepare(job.threads)
    model, frames = job.load_model(), []
    for shift, grid in SHIFTS.items():
        for prompt in job.prompts:
            options = {**job.generation_options, **grid}
            generation = model.generation(prompt, job.num_frames, VANILLA, job.seed, **options)
            probe = Probe(generation, {"shift": shift, "prompt": prompt})
            for _ in sample(generation, observe=probe):
                pass
            frames.append(pd.DataFrame(probe.rows))
            print(f"shift {shift}: {prompt}", flush=True)
    return pd.concat(frames, ignore_index=True)


def findings(data: pd.DataFrame) -> pd.DataFrame:
    """By shift and quantity: share of adjacent steps that grow, first, middle and last value, spread between chunks."""
    rows = []
    for shift, part in data.groupby("shift", sort=False):
        part = part.assign(input_per_dt=part["input"] / part["dt"])
        for quantity in [name for name in ("input", "input_per_dt", "velocity") if name in part]:
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


def table(data: pd.DataFrame, source: str) -> Table:
    """The findings of every prompt, and their mean over prompts with its interval."""
    each = pd.concat([findings(part).assign(n=1) for _, part in data.groupby("prompt")])
    rows = []
    for (shift, quantity), group in each.groupby(["shift", "quantity"], sort=False):
        row: dict[str, Any] = {"shift": shift, "quantity": quantity, "n": len(group)}
        for key in _FOUND:
            row[key], row[f"{key}_ci95"] = mean_and_interval(list(group[key]))
        rows.append(row)
    columns = [Column(heading, key, "{:.3g}", f"± {{{key}_ci95:.2g}}") for key, heading in _FOUND.items()]
    return Table(
        "L1_rel over the process.",
        f"Measured here ({source}). Relative L1 change of each chunk from its step before; means over prompts ± "
        "half-width of the 95 % interval. Growing share is the share of steps in which it grows, first, middle and "
        "last are medians over chunks at those steps; input_per_dt is the input's by the step's share of the process; "
        "shift is of the time table, own the model's. The ratios are the largest chunk's over the smallest's.",
        (Column("shift", "shift"), Column("quantity", "quantity"), Column("n", "n"), *columns),
        pd.DataFrame(rows),
    )


@styled()
def draw_process(data: pd.DataFrame, subject: str) -> Figure:
    """Every chunk's curve over the rows of the sampler, as the paper's Fig. 2 shows it; the model's own time grid."""
    own = data[data["shift"] == OWN]
    chunks = sorted(own["chunk"].unique())
    figure, axes = plt.subplots(figsize=(COLUMN_WIDTH_IN, 2.3))
    for chunk, colour in zip(chunks, _shades(len(chunks)), strict=True):
        by_row = own[own["chunk"] == chunk].groupby("row")["input"]
        percent = 100 * (by_row.median().index + 1) / (own["row"].max() + 1)
        axes.plot(percent, by_row.median(), color=colour)
        axes.fill_between(percent, by_row.min(), by_row.max(), color=colour, alpha=0.2, linewidth=0)
        axes.annotate(f"{chunk}", (percent[-1], by_row.median().iloc[-1]), (0, 2), textcoords="offset points")
    axes.set_title(f"L1_rel of each chunk's input ({subject})")
    axes.set_xlabel("diffusion process (% of rows); at a curve's end its chunk")
    axes.set_ylabel(f"L1_rel (median and range, {counted(own['prompt'].nunique(), 'prompt')})")
    axes.set_xlim(0, 104)
    axes.set_ylim(bottom=0)
    axes.margins(y=0.12)
    return figure


@styled()
def draw_steps(data: pd.DataFrame, subject: str) -> Figure:
    """By the chunks' own steps: a panel a quantity and time grid."""
    quantities = [name for name in ("input", "velocity") if name in data]
    shifts = list(data["shift"].unique())
    chunks = sorted(data["chunk"].unique())
    size = (COLUMN_WIDTH_IN, 1.5 * len(shifts) + 0.5)
    figure, grid = plt.subplots(len(shifts), len(quantities), figsize=size, squeeze=False, sharex=True)
    for axes_row, shift in zip(grid, shifts, strict=True):
        for axes, quantity in zip(axes_row, quantities, strict=True):
            part = data[data["shift"] == shift]
            for chunk, colour in zip(chunks, _shades(len(chunks)), strict=True):
                curve = part[part["chunk"] == chunk].groupby("step")[quantity].median()
                axes.plot(curve.index, curve, color=colour, linewidth=0.8, label=f"{chunk}")
            axes.set_yscale("log")
            lowest, highest = axes.get_ylim()
            if highest >= 10 * lowest:  # else a decade may not be among the ticks, and theirs are the only labels
                axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_title(f"{quantity}, {'own shift' if shift == OWN else f'shift {shift}'}")
        axes_row[0].set_ylabel("L1_rel")
    for axes in grid[-1]:
        axes.set_xlabel("the chunk's own step")
    figure.suptitle(f"L1_rel by own step ({subject})", fontsize=7)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(chunks), title="chunk", handlelength=1)
    return figure


def _shades(number: int) -> Any:
    return plt.colormaps["viridis"](np.linspace(0, 0.9, number))


@command("l1_rel")
def main(arguments: list[str]) -> int:
    publish, arguments = publishing(arguments)
    check_overrides(arguments)
    job = make_job(compose_config(["method=vanilla", *arguments]))
    refuse_random_weights(job, "distances say")
    data = measured(replace(job, metrics=()))
    stem, subject = f"{job.model_name}_{job.setting_name}_l1_rel", f"{job.model_name}, {job.setting_name}"
    machine = environment.describe(job.device)
    code = new_record(job, job.method_name, job.method, job.prompts[0]).code
    source = f"{machine.get('gpu', machine['cpu'])}; {made_by()}; weights {weights_id(job)}, code {code}"
    drawn = f"{subject}, n = {counted(data['prompt'].nunique(), 'prompt')}; {source}"
    to = destination(job.output_dir, publish)
    to.save_table(stem, table(data, f"{subject}; {source}"))
    to.save_figure(draw_process(data, subject), stem, drawn)
    to.save_figure(draw_steps(data, subject), f"{stem}_steps", drawn)
    return 0
