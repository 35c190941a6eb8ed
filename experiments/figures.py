"""Figures from records, and their points as a table: ``python -m experiments.figures [model=magi] [key=value ...]``.

reuse_curve: PSNR to vanilla against compute left, for chunkwise, uniform and every-k reuse at equal warm-up, with 95 %
intervals over prompts; warmup_sweep: the same for other warm-ups; frames: one prompt's video under every method.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from eval.statistics import mean_and_interval, paired_difference
from eval.video_io import read_lossless
from experiments.cli import check_overrides, compose_config
from experiments.collect import collect
from experiments.errors import BadInput
from experiments.job import Job, make_job
from experiments.records import new_record, store_of
from experiments.results import provenance, save_figure, save_table, table_lines
from experiments.tables import METHODS

# Method families by the option that is swept; slow and fast rows of one family are points of one curve.
FAMILIES = {"flowcache": "chunkwise (FlowCache)", "teacache": "uniform (TeaCache)", "every_k": "every k-th step"}
COLOURS = {"flowcache": "tab:blue", "teacache": "tab:orange", "every_k": "tab:green"}
MARKERS = {"flowcache": "o", "teacache": "s", "every_k": "^"}
WARMUP_STEPS = 5  # of the main curve: the paper's
COMPARED_SHARES = (0.3, 0.4, 0.5, 0.6, 0.75, 0.9)  # of vanilla's FLOPs, at which families are compared
_SETTING = ["family", "warmup_steps", "option"]
PSNR_CAP_DB = 60.0  # videos closer to vanilla than this count as this: identical ones would be infinite


def reuse_videos(frame: pd.DataFrame) -> pd.DataFrame:
    """The videos that the curves compare: family, warm-up, option, prompt, compute left, PSNR.

    Only prompts that every setting has, so that no point is better for having easier ones.
    """
    frame = frame[frame["method"] != "vanilla"].copy()
    frame["family"] = frame["method"].str.replace(r"_(slow|fast)$", "", regex=True)
    frame["option"] = frame["threshold"].where(frame["family"] != "every_k", frame.get("every"))
    frame["psnr"] = pd.to_numeric(frame["psnr"]).clip(upper=PSNR_CAP_DB)
    standard = frame["reuse"].isna() & frame["refresh_clean_kv"] & frame["near_clean"] & frame["kv_budget"].isna()
    frame = frame[standard].drop_duplicates([*_SETTING, "prompt", "seed"])
    num_settings = len(frame.groupby(_SETTING))
    return frame[frame.groupby(["prompt", "seed"])["psnr"].transform("size") == num_settings]


def reuse_points(videos: pd.DataFrame) -> pd.DataFrame:
    """One row a setting: family, warm-up, option, compute left, mean PSNR and half-width of its 95 % interval, n."""
    rows = []
    for (family, warmup, option), group in videos.groupby(_SETTING):
        mean, half_width = mean_and_interval(list(group["psnr"]))
        rows.append(
            {
                "family": family,
                "warmup_steps": int(warmup),
                "option": option,
                "compute_left": group["flops_share"].mean(),
                "psnr": mean,
                "psnr_ci95": half_width,
                "n": len(group),
            }
        )
    return pd.DataFrame(rows).sort_values(["family", "warmup_steps", "compute_left"], ignore_index=True)


def at_equal_compute(videos: pd.DataFrame, warmup_steps: int) -> pd.DataFrame:
    """Chunkwise reuse against each other family, prompt by prompt: the mean difference in PSNR at equal compute.

    Between a prompt's two nearest settings PSNR is interpolated; where a family has none on both sides it is left out.
    """
    videos = videos[videos["warmup_steps"] == warmup_steps]
    psnr_at: dict[str, list[np.ndarray]] = {family: [] for family in FAMILIES}
    for (_, family), own in videos.sort_values("flops_share").groupby(["prompt", "family"]):
        curve = np.interp(COMPARED_SHARES, own["flops_share"], own["psnr"], left=np.nan, right=np.nan)
        psnr_at[family].append(curve)
    rows = []
    for other in [family for family in FAMILIES if family != "flowcache"]:
        if not psnr_at[other] or len(psnr_at[other]) != len(psnr_at["flowcache"]):
            continue
        for place, share in enumerate(COMPARED_SHARES):
            ours, theirs = (np.array([curve[place] for curve in psnr_at[family]]) for family in ("flowcache", other))
            both = ~np.isnan(ours) & ~np.isnan(theirs)
            if both.sum() > 1:
                difference, low, high = paired_difference(ours[both], theirs[both])
                rows.append(
                    {
                        "against": other,
                        "compute_left": share,
                        "difference_db": difference,
                        "low": low,
                        "high": high,
                        "won": int((ours[both] > theirs[both]).sum()),
                        "n": int(both.sum()),
                    }
                )
    return pd.DataFrame(rows)


def markdown(points: pd.DataFrame, compared: pd.DataFrame, source: str) -> str:
    """The curves' points and what they say at equal compute as tables, with provenance."""
    differences = [
        [
            FAMILIES[row.against],
            f"{row.compute_left:g}",
            f"{row.difference_db:+.2f} ({row.low:+.2f} to {row.high:+.2f})",
            f"{row.won} of {row.n}",
        ]
        for row in compared.itertuples()
    ]
    rows = [
        [
            FAMILIES[point.family],
            str(point.warmup_steps),
            f"{point.option:g}",
            f"{point.compute_left:.3f}",
            f"{point.psnr:.2f} ± {point.psnr_ci95:.2f}",
            str(point.n),
        ]
        for point in points.itertuples()
    ]
    lines = [
        f"**Reuse at equal compute.** Measured here ({source}). PSNR against vanilla's video of the same prompt and",
        f"seed, a video counting at most {PSNR_CAP_DB:.0f} dB.",
        "",
        f"Chunkwise reuse less another, prompt by prompt, warm-up {WARMUP_STEPS}, settings interpolated to equal",
        "compute; mean difference with its 95 % bootstrap interval.",
        "",
        *table_lines(["chunkwise against", "compute left", "PSNR difference dB", "prompts won"], differences),
        "",
        "All settings, mean ± half-width of the 95 % interval over the same prompts.",
        "",
        *table_lines(["reuse", "warm-up", "threshold or k", "compute left", "PSNR dB", "n"], rows),
    ]
    return "\n".join(lines) + "\n"


def draw_reuse_curve(points: pd.DataFrame, warmup_steps: int, subject: str) -> Figure:
    """PSNR against compute left, a line a family; ``subject`` says of what."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for family, title in FAMILIES.items():
        mine = points[(points["family"] == family) & (points["warmup_steps"] == warmup_steps)]
        if len(mine):
            _curve(axes, mine, title, COLOURS[family], MARKERS[family], "-")
    axes.set_title(f"Reuse at equal compute, warm-up {warmup_steps} ({subject}, measured)", fontsize=11)
    axes.set_xlabel("compute left (share of vanilla's executed FLOPs)")
    axes.set_ylabel(f"PSNR to vanilla, dB (mean and 95 % interval, n = {points['n'].max()})")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def draw_warmup_sweep(points: pd.DataFrame) -> Figure:
    """The same, a panel a family, a line a warm-up."""
    warmups = sorted(points["warmup_steps"].unique())
    figure, all_axes = plt.subplots(1, len(FAMILIES), figsize=(12, 4.2), sharey=True, layout="constrained")
    shades = plt.colormaps["viridis"](np.linspace(0.1, 0.9, len(warmups)))
    for axes, (family, title) in zip(all_axes, FAMILIES.items(), strict=True):
        for warmup, shade in zip(warmups, shades, strict=True):
            mine = points[(points["family"] == family) & (points["warmup_steps"] == warmup)]
            if len(mine):
                _curve(axes, mine, f"warm-up {warmup}", shade, MARKERS[family], "-")
        axes.set_title(title)
        axes.set_xlabel("compute left (share of vanilla's FLOPs)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    all_axes[0].set_ylabel("PSNR to vanilla, dB")
    return figure


def _curve(axes, points: pd.DataFrame, title: str, colour, marker: str, line: str) -> None:
    axes.errorbar(
        points["compute_left"],
        points["psnr"],
        yerr=points["psnr_ci95"],
        color=colour,
        marker=marker,
        linestyle=line,
        markersize=4,
        linewidth=1.2,
        capsize=2,
        label=title,
    )


def draw_frames(jobs: list[Job], prompt: str) -> Figure | None:
    """One row a method, one frame from the middle of every chunk; methods without a finished video are left out, and
    there is no figure if all are."""
    rows = {}
    for job in jobs:
        record = store_of(job).find(new_record(job, job.method_name, job.method, prompt).key)
        if record is not None:
            frames = read_lossless(store_of(job).video_path(record.key))
            share = record.flops / record.baseline_flops
            model = job.load_model()
            first, usual = model.frames_of(1), model.chunk_frames
            middles = [first // 2, *range(first + usual // 2, len(frames), usual)]
            gap = np.full((frames.shape[1], 2, 3), 255, np.uint8)
            strip = [part for middle in middles for part in (frames[middle], gap)]
            rows[f"{job.method_name}\n{share:.2f} of the compute"] = np.concatenate(strip[:-1], axis=1)
    if not rows:
        return None
    size = (10, 1.1 * len(rows) + 0.3)
    figure, all_axes = plt.subplots(len(rows), 1, figsize=size, squeeze=False, layout="constrained")
    for axes, (label, strip) in zip(all_axes[:, 0], rows.items(), strict=True):
        axes.imshow(strip)
        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_frame_on(False)
    figure.suptitle(f"{prompt!r}: a frame of every chunk", fontsize=9)
    return figure


def main(arguments: list[str]) -> int:
    try:
        check_overrides(arguments)
        job = make_job(compose_config(arguments))
        videos = collect(job)
    except BadInput as error:
        print(f"figures: {error}", file=sys.stderr)
        return 2
    compared = reuse_videos(videos)
    points, stem = reuse_points(compared), f"{job.model_name}_{job.setting_name}"
    subject = f"{job.model_name}, {job.setting_name}"
    text = markdown(points, at_equal_compute(compared, WARMUP_STEPS), f"{subject}; {provenance(compared)}")
    save_table(f"{stem}_reuse_curve", text, points)
    save_figure(draw_reuse_curve(points, WARMUP_STEPS, subject), f"{stem}_reuse_curve")
    save_figure(draw_warmup_sweep(points), f"{stem}_warmup_sweep")
    jobs = [make_job(compose_config([*arguments, f"method={name}"])) for name in METHODS]
    frames = draw_frames(jobs, job.prompts[0])
    if frames is not None:
        save_figure(frames, f"{stem}_frames")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
