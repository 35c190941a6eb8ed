"""How figures look: one column of a paper wide, colours that colour-blind readers can tell apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

COLUMN_WIDTH_IN = 3.3
TITLE_CHARACTERS = 70  # that fit the width at 6 points

# Okabe and Ito's palette, without its yellow, which is lost on white.
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#000000",
)
PALETTE = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK)
GREY = "#767676"  # of what has no colour of its own
# A method looks the same in every figure and on the report's page: a colour and a marker a family, hollow where it is
# the slow one. An option's values are told apart by line style and by how much of the marker is filled.
FAMILY_COLOURS = {
    "flowcache": BLUE,
    "teacache": ORANGE,
    "every_k": GREEN,
    "vanilla_causal": SKY,
    "vanilla_kv": PURPLE,
    "vanilla": BLACK,  # last: the others' names begin with it
}
FAMILY_MARKERS = {
    "flowcache": "o",
    "teacache": "s",
    "every_k": "^",
    "vanilla_causal": "v",
    "vanilla_kv": "P",
    "vanilla": "D",
}
OTHER_MARKER = "X"
LINE_STYLES = ("-", "--", ":", "-.")
FILLS = ("full", "left", "none", "top")
COMPUTED, REUSED, HELD = BLUE, ORANGE, PURPLE
RANGES = {"psnr": (0.0, math.inf), "ssim": (-1.0, 1.0), "lpips": (0.0, math.inf), "caption_right": (0.0, 1.0)}

STYLE = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "legend.fontsize": 6,
    "legend.framealpha": 0.9,
    "legend.handlelength": 1.8,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.5,
    "errorbar.capsize": 1.5,
    "figure.constrained_layout.use": True,
    "figure.dpi": 300,
    "savefig.dpi": 300,
    "axes.prop_cycle": plt.cycler(color=PALETTE),
}


def styled() -> AbstractContextManager[None]:
    """A context, and a decorator of functions that draw, in which figures look like this."""
    return plt.rc_context(STYLE)


def family(method: str) -> str:
    """'flowcache_fast' -> 'flowcache', 'vanilla_kv' -> 'vanilla_kv'."""
    return next((name for name in FAMILY_COLOURS if method.startswith(name)), method)


def colour_of(method: str) -> str:
    return FAMILY_COLOURS.get(family(method), GREY)


def marker_of(method: str) -> str:
    return FAMILY_MARKERS.get(family(method), OTHER_MARKER)


def is_hollow(method: str) -> bool:
    return "_slow" in method


def look(method: str, option: int = 0) -> dict[str, Any]:
    """Of a method's line, as matplotlib's arguments; ``option`` is the place of an option's value among the others."""
    return {
        "color": colour_of(method),
        "marker": marker_of(method),
        "linestyle": LINE_STYLES[option % len(LINE_STYLES)],
        "fillstyle": "none" if is_hollow(method) else FILLS[option % len(FILLS)],
        "markerfacecoloralt": "white",
    }


def error_bars(
    values: Sequence[float], half_widths: Sequence[float], lowest: float = -math.inf, highest: float = math.inf
) -> np.ndarray:
    """[2, n]: how far each interval reaches below and above its value, cut off at the ends of what is possible; nan,
    which draws no bar, where there is no interval."""
    centre, half = np.asarray(values, float), np.asarray(half_widths, float)
    return np.stack([np.minimum(half, centre - lowest), np.minimum(half, highest - centre)]).clip(min=0)
