"""How near to the baseline's video anything can be told to be, for the figures: the table of ``experiments.floor``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from experiments.show.style import BLACK

WAY = "noise moved by 1e-06"  # the row of the table that figures show
_KEYS = {"psnr": "mean_capped_db", "latent_snr": "latent_mean_db"}


def noise_floor(
    folders: Sequence[Path], model: str, setting: str, method: str, weights: Sequence[str], quality: str
) -> float | None:
    """What the first of the folders that has it says of a method's own video, in dB; None, and a message, without it.

    Args:
        folders: of tables/.
        model, setting, method, weights: of what is drawn; a floor of others does not hold for it.
        quality: "psnr", each video at most 60 dB, or "latent_snr".
    """
    for folder in folders:
        path = folder / "tables" / f"{model}_{setting}_floor.csv"
        if path.is_file():
            table = pd.read_csv(path).set_index("way")
            own = table.loc[WAY]
            if own["method"] == method and set(weights) == {own["weights"]}:
                return float(own[_KEYS[quality]])
    print(
        f"figures: no line for what rounding alone does to {method}'s videos of these weights; "
        f"python -m experiments.floor model={model} measures it",
        file=sys.stderr,
    )
    return None


def draw_floor(axes: Axes, floor_db: float | None) -> None:
    """A line across the axes, where there is a floor: the baseline's own video, of moved noise."""
    if floor_db is not None:
        axes.axhline(floor_db, color=BLACK, linestyle="--", linewidth=0.6, zorder=0, label=WAY)
