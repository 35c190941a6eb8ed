"""Methods at equal compute, by what moves: a table of its own, where an experiment says ``by_motion`` under ``curves``.

Papers claim most where much or little moves, and the embedded models' captions say the motion (eval.scenes): shapes
stay still, move on, or bounce off a wall. Two shapes move alike. Under a camera that pans nothing stays still.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from eval.scenes import VELOCITIES, scene_of
from eval.statistics import mean_and_interval
from experiments.show.results import BOOTSTRAP, Column, Table
from experiments.show.reuse_curve import Curves, at_equal_compute, interpolated, near, on_line

CLASSES = ("staying still", "moving on", "bouncing")


def motion_class(prompt: str) -> str | None:
    """One of ``CLASSES``; None for a prompt outside the grammar of the embedded models' captions."""
    try:
        scene = scene_of(prompt)
    except ValueError:
        return None
    pans = scene.camera != "" and scene.motion == "staying still"
    return "moving on" if pans or scene.motion in VELOCITIES else scene.motion


def by_motion(videos: pd.DataFrame, curves: Curves) -> pd.DataFrame:
    """One row a class of motion, share of compute and method: mean quality there, half-width of its 95 % interval and
    of how many videos, and for each compared method how much more it has, pair by pair, with its 95 % interval.

    ``videos`` are those of ``reuse_videos``. A method that has no settings on both sides of a share has no row there.
    """
    rows: list[dict[str, Any]] = []
    classes = videos["prompt"].map({prompt: motion_class(prompt) for prompt in videos["prompt"].unique()})
    for motion in CLASSES:
        own = on_line(videos[classes == motion], curves)
        leads = _leads(own, curves)
        for name, method in own.sort_values("flops_share").groupby("family"):
            settings = dict(iter(method.groupby(["prompt", "seed"])))
            shares = {pair: near(curves.shares, group["flops_share"]) for pair, group in settings.items()}
            for share, values in zip(
                curves.shares, interpolated(curves.quality, shares, settings)[:, 0].T, strict=True
            ):
                values = values[np.isfinite(values)]
                if len(values):
                    row = {"motion": motion, "compute_left": share, "method": name, "n": len(values)}
                    row["db"], row["db_ci95"] = mean_and_interval(list(values))
                    rows.append(row | leads.get((name, share), {}))
    rows.sort(key=lambda row: (CLASSES.index(row["motion"]), row["compute_left"]))
    return pd.DataFrame(rows)


def _leads(videos: pd.DataFrame, curves: Curves) -> dict[tuple[str, float], dict[str, float]]:
    """By method and share, what the compared methods have more."""
    leads: dict[tuple[str, float], dict[str, float]] = {}
    for row in at_equal_compute(videos, curves).to_dict("records"):
        key = f"{row.get('compared', curves.all_compared[0])}_more"
        lead = {key: row["difference_db"], f"{key}_n": row["difference_db_n"]}
        leads.setdefault((row["against"], row["compute_left"]), {}).update(
            lead | {f"{key}_{end}": row[end] for end in ("low", "high")}
        )
    return leads


def table(rows: pd.DataFrame, curves: Curves, baseline: str, source: str) -> Table:
    shown = curves.shown
    return Table(
        "Reuse at equal compute, by motion.",
        f"Measured here ({source}). {shown.told[0]} {baseline}'s video of the same prompt and seed, at most "
        f"{shown.highest:.0f} dB; {curves.title} {curves.at:g}, settings interpolated to equal compute. Classes are "
        "what the captions say; mean ± half-width of the 95 % interval over n videos, and how much more a compared "
        f"method has, prompt by prompt and seed by seed, with its 95 % bootstrap interval. {BOOTSTRAP}",
        (
            Column("motion", "motion"),
            Column("compute left", "compute_left", "{:g}"),
            Column("method", "method"),
            Column("n", "n"),
            Column(f"{shown.title} dB", "db", "{:.2f}", "± {db_ci95:.2f}"),
            *(
                Column(f"{name} has more", key, "{:+.2f}", f"{{{key}_low:+.2f}} to {{{key}_high:+.2f}}")
                for name, key in ((name, f"{name}_more") for name in curves.all_compared)
            ),
        ),
        rows,
    )
