"""Equal compute on the leaderboard: a family's curves as the page's script draws them, and its paired differences."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from experiments.show.methods import family
from experiments.show.published import Published, read_published
from experiments.show.report import look_of
from experiments.show.reuse_curve import PSNR_CAP_DB
from experiments.show.style import RANGES

EXPERIMENTS = {  # by the name of its table, how a reader is told of it
    "field": "the methods of the field",
    "placement": "FlowCast and its parts",
    "main": "each method at its own options",
}
PAIRED = ("field", "placement")
SHARES = (0.25, 0.35, 0.5)  # of the compute, that differences are shown at; all that there are where none is of these
_QUALITIES = {"psnr": "", "latent_snr": "_latent_snr"}  # by column, the ending of its tables' names
_TITLES = {"psnr": "PSNR to {}, dB", "latent_snr": "latents' signal to noise, to {}'s, dB"}
_SHORT = {"psnr": "PSNR", "latent_snr": "latents"}
_DASHES = ("", "6 3", "2 3", "8 3 2 3")  # of curves in one colour, in their order


def curves_of(stem: str) -> list[dict[str, Any]]:
    """One a table and quality: title, axis, where it is from, and its lines; of those tables that are there."""
    curves = []
    for name, told in EXPERIMENTS.items():
        for quality, ending in _QUALITIES.items():
            table = read_published(f"{stem}_{name}{ending}")
            if table is None or quality not in table.data:
                continue
            lines = _lines(table, quality, name != "main")
            capped = quality == "psnr" and name != "main"
            title = _TITLES[quality].format(table.baseline or "the baseline")
            videos = table.data["n"].max()
            curves.append(
                {
                    "name": f"{told}, {videos} videos a point: {_SHORT[quality]}",
                    "short": _SHORT[quality],
                    "title": title + (f" (a video counts at most {PSNR_CAP_DB:g})" if capped else ""),
                    "baseline": table.baseline or "the baseline",
                    "lines": lines,
                    "experiment": name,
                }
            )
    return curves


def _lines(table: Published, quality: str, is_curve: bool) -> list[dict[str, Any]]:
    data = table.data[table.data[quality].notna()]
    names = data["family"] if is_curve else data["method"].map(family)
    highest = PSNR_CAP_DB if is_curve and quality == "psnr" else math.inf
    lines, alike = [], {}
    for name, mine in data.groupby(names):
        look = look_of(str(name).partition(" + ")[0].partition(", ")[0])
        seen = alike.setdefault(look["colour"], [])
        seen.append(name)
        points = [_point(row, quality, highest) for _, row in mine.sort_values("compute_left").iterrows()]
        lines.append({"method": name, "look": look, "dash": _DASHES[(len(seen) - 1) % len(_DASHES)], "points": points})
    return lines


def _point(row: pd.Series, quality: str, highest: float) -> dict[str, Any]:
    value, half = float(row[quality]), float(row[f"{quality}_ci95"])
    lowest = RANGES[quality][0]
    ends = None if math.isnan(half) else [max(value - half, lowest), min(value + half, highest)]
    told = row.get("told", row.get("method", ""))
    return {
        "told": "" if pd.isna(told) else told,
        "compute_left": float(row["compute_left"]),
        "value": value,
        "interval": ends,
        "n": int(row.get(f"{quality}_n", row["n"])),
    }


def paired_of(stem: str) -> list[dict[str, Any]]:
    """A table an experiment: how far FlowCast and FlowCache are ahead of each method at equal compute, video by
    video."""
    return [
        _paired(table, EXPERIMENTS[name])
        for name in PAIRED
        if (table := read_published(f"{stem}_{name}", "_paired")) is not None and (read_published(f"{stem}_{name}"))
    ]


def _paired(table: Published, told: str) -> dict[str, Any]:
    data = table.data
    if "compared" not in data:  # a table of one method against the others: its first heading says which
        data = data.assign(compared=table.headings[0].removesuffix(" against"))
    shares = sorted(data["compute_left"].unique())
    shares = [share for share in shares if share in SHARES] or shares
    columns = [(one, share) for one in sorted(data["compared"].unique(), reverse=True) for share in shares]
    by_place = {(row["against"], row["compared"], row["compute_left"]): row for _, row in data.iterrows()}
    rows = [
        {"method": against, "cells": [_difference(by_place.get((against, *column))) for column in columns]}
        for against in sorted(data["against"].unique())
    ]
    return {
        "title": told,
        "link": table.path,
        "compared": list(dict.fromkeys(one for one, _ in columns)),
        "headings": [f"{one} ahead at {share:g}" for one, share in columns],
        "rows": rows,
        "baseline": table.baseline,
    }


def _difference(row: pd.Series | None) -> dict[str, Any]:
    """A cell; it is ``sure`` where the interval does not reach the other side of 0."""
    if row is None or pd.isna(row["difference_db"]):
        return {"value": None, "text": "-", "spread": "", "sure": True}
    low, high, videos = row["low"], row["high"], f"won {row['won']:.0f} of {row['difference_db_n']:.0f}"
    spread = videos if pd.isna(low) else f"{low:+.2f} to {high:+.2f}; {videos}"
    sure = not pd.isna(low) and not low <= 0 <= high
    text = f"{row['difference_db']:+.2f}"
    return {"value": repr(float(row["difference_db"])), "text": text, "spread": f"({spread})", "sure": sure}
