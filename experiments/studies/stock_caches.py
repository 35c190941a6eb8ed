"""diffusers' own caches beside ours on one stock pipeline of diffusers, SkyReels-V2's, block-causal.

``python -m experiments.stock_caches [num_prompts=16] [publish=true] [key=value ...]`` runs what
conf/studies/stock_caches.yaml lists: each row's videos are compared with the stock pipeline's own of the same prompt
and timed in turn with them, and FLOPs are counted as they execute, alike for all. Needs diffusers. Figures of finished
videos are kept in output_dir/stock_caches/, so that a killed run continues. The table goes to output_dir/tables/
(``publish=true``: into results/).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from omegaconf import OmegaConf

from eval.speedup import speedup
from eval.statistics import mean_and_interval, share_and_interval
from experiments.job.cli import check_overrides, compose_config
from experiments.job.errors import BadInput, command
from experiments.job.groups import CONF
from experiments.job.job import Job, make_job, refuse_random_weights
from experiments.job.units import counted
from experiments.records import weights_id
from experiments.run import environment
from experiments.show.results import BOOTSTRAP, Column, Table, destination, made_by, missing_notes, publishing
from experiments.studies.calibrate import calibration_job

if TYPE_CHECKING:  # diffusers is optional
    from experiments.studies.stock_videos import Row

QUALITY = ("psnr", "ssim", "lpips")
IDENTICAL = "every frame is equal to the stock pipeline's"
COLUMNS = (
    Column("on the stock pipeline", "name"),
    Column("options", "options"),
    Column("n", "n"),
    Column("compute, of stock", "share", "{:.3f}", "± {share_ci95:.3f}"),
    Column("of vanilla hooked", "share_of_vanilla", "{:.3f}"),
    Column("speed-up over stock", "speedup", "{:.2f}x", "{speedup_low:.2f} to {speedup_high:.2f}"),
    Column("PSNR dB", "psnr", "{:.2f}", "± {psnr_ci95:.2f}"),
    Column("SSIM", "ssim", "{:.4f}", "± {ssim_ci95:.4f}"),
    Column("LPIPS", "lpips", "{:.4f}", "± {lpips_ci95:.4f}"),
    Column("caption right", "caption", "{:.0%}", "{caption_low:.0%} to {caption_high:.0%}"),
)
# What diffusers 0.42.1 answers here, and what that means (tests hold it to this).
NOTES = (
    "FirstBlockCache and MagCache by register_blocks(), without which they raise; MagCache with the ratios of its own "
    "calibrate mode, on a prompt of the calibration's; TaylorSeerCache with patterns that match this model's attention",
    "PyramidAttentionBroadcast raises on pipe.current_timestep, which is one a frame; here it gets their mean. It has "
    "one state for both guidance branches, which then take each other's attention",
    'No rows: FasterCache expects both guidance branches in one batch ("IndexError: tuple index out of range"); '
    "SeaCache asks the pipeline for steps and sigmas, which this one does not tell, and skips nothing; TextKVCache is "
    "for another model's blocks and does nothing",
)


def rows_of(study: dict[str, Any], overrides: Sequence[str]) -> list[Row]:
    """The stock pipeline itself, then what the study's file lists, in its order."""
    from experiments.studies.stock_videos import STOCK, Row

    rows = [Row(STOCK)]
    rows += [Row(name, options) for name, listed in study["diffusers"].items() for options in listed]
    for name, listed in study["ours"].items():
        for options in listed:
            given = [f"{key}={value}" for key, value in options.items()]
            job = make_job(compose_config([*overrides, f"method={name}", *given]))
            rows.append(Row(name, options, job.method))
    return rows


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a row: means over prompts with their intervals. ``frame`` has what ``Stock.figures`` says of each video."""
    vanilla = frame[frame["name"] == "vanilla"].set_index("prompt")["flops"]
    rows = []
    for (name, options), own in frame.groupby(["name", "options"], sort=False):
        shares = list(own["flops"] / own["stock_flops"])
        row: dict[str, Any] = {"name": name, "options": options, "n": len(own)}
        row["share"], row["share_ci95"] = mean_and_interval(shares)
        row["share_of_vanilla"] = (own.set_index("prompt")["flops"] / vanilla).mean()
        row["caption"], row["caption_low"], row["caption_high"] = share_and_interval(list(own["caption_right"]))
        compared = own.get("psnr", pd.Series(math.nan, own.index)).notna().all()
        if compared:
            times = speedup(list(own["seconds"]), list(own["stock_seconds"]), shares)
            row["speedup"], row["speedup_low"], row["speedup_high"] = times.median, times.low, times.high
            row["efficiency"] = times.efficiency[0]
            for metric in QUALITY:
                values = [value for value in own[metric] if math.isfinite(value)]
                row[metric], row[f"{metric}_ci95"] = mean_and_interval(values)
                row[f"{metric}_n"] = len(values)
                row[f"{metric}_reason"] = None if values else IDENTICAL
        rows.append(row)
    return pd.DataFrame(rows)


def table(frame: pd.DataFrame, job: Job, source: str) -> Table:
    data = summary(frame)
    return Table(
        "Caches on a stock pipeline.",
        f"Measured here ({source}). SkyReelsV2DiffusionForcingPipeline of diffusers, {job.num_frames} frames, with "
        "nothing, with diffusers' own caches, and with the suite's methods by apply_flowcache. Compute is FLOPs that "
        "the transformer executed, as a share of the stock pipeline's without a cache, which computes finished chunks "
        "again in every row; vanilla hooked does not. Speed-up is the median of the ratios of the two processor times "
        "of a prompt, of whole calls, taken in turn. PSNR (of videos that are not identical), SSIM and LPIPS are "
        "against the stock pipeline's video of the same prompt. Means ± half-width of the 95 % interval over n prompts "
        "(Student's t), speed-ups with their bootstrap interval, captions with their Wilson interval.",
        COLUMNS,
        data,
        (*NOTES, *missing_notes(COLUMNS, data.set_index("name")), BOOTSTRAP),
    )


def told(options: dict[str, Any]) -> str:
    """As the table shows them: without the part that a method's option belongs to."""
    return ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in options.items()) or "-"


def frame_of(figures: Iterable[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([own | {"options": told(own["options"])} for own in figures])


@command("stock_caches")
def main(arguments: list[str]) -> int:
    publish, arguments = publishing(arguments)
    overrides = ["model=skyreels", *arguments]
    check_overrides(["method=vanilla", *overrides])
    job = make_job(compose_config(["method=vanilla", *overrides]))
    refuse_random_weights(job, "quality says")
    if job.model_name != "skyreels":
        raise BadInput(f"model={job.model_name} has no diffusion-forcing pipeline in diffusers; leave model out")
    try:
        from experiments.studies.stock_videos import Stock, made_or_kept
    except ImportError as error:
        raise BadInput(f"the stock pipeline is diffusers': {error}") from error
    rows = rows_of(OmegaConf.to_container(OmegaConf.load(CONF / "studies" / "stock_caches.yaml")), overrides)
    calibrated_on = [each for each in overrides if each.partition("=")[0] not in ("num_prompts", "prompts")]
    environment.prepare(job.threads)
    stock = Stock(job, calibration_job(calibrated_on).prompts[0])
    figures: list[dict[str, Any]] = []
    for prompt in job.prompts:
        own = list(made_or_kept(stock, rows, prompt))
        figures += own
        shares = ", ".join(f"{each['name']} {each['flops'] / each['stock_flops']:.2f}" for each in own[1:])
        print(f"{prompt}: compute of stock: {shares}", flush=True)
    machine = environment.describe(job.device)
    source = (
        f"{job.model_name}, {job.setting_name}, {stock.sampling.num_steps} steps, ar_step {stock.sampling.ar_step}, "
        f"chunks of {stock.sampling.causal_block_size} latent frames; {machine.get('gpu', machine['cpu'])}, "
        f"{counted(job.threads, 'thread')}; torch {machine['packages']['torch']}, diffusers "
        f"{machine['packages']['diffusers']}; seed {job.seed}; {made_by()}; weights {weights_id(job)}; code "
        f"{stock.code}"
    )
    to = destination(job.output_dir, publish)
    to.save_table(f"{job.model_name}_{job.setting_name}_stock_caches", table(frame_of(figures), job, source))
    return 0
