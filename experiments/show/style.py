"""How figures look: one column of a paper wide, colours that colour-blind readers can tell apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from experiments.job.compose import baselines
from experiments.job.experiment import listed_methods
from experiments.show.methods import family, known_methods

CURVE = "reuse_curve"  # the experiment whose methods share a figure most
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
# A method looks the same in every figure and on the report's page: a colour and a marker a family, hollow where it is
# the slow one. An option's values are told apart by line style and by how much of the marker is filled.
BASELINE_LOOKS = ((BLACK, "D"), (SKY, "v"), (PURPLE, "P"))
COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY)
MARKERS = ("o", "s", "^", "X", "<", ">", "p")  # one more than colours, so that no pair comes twice among 42 families
UNKNOWN_LOOK = ("#767676", "d")  # of a method that has no file in conf/method
LINE_STYLES = ("-", "--", ":", "-.")
FILLS = ("full", "left", "none", "top")
COMPUTED, REUSED, FORECAST, HELD = BLUE, ORANGE, GREEN, PURPLE
RANGES = {"psnr": (0.0, math.inf), "ssim": (-1.0, 1.0), "lpips": (0.0, math.inf), "caption_right": (0.0, 1.0)}
RANGES |= {"latent_snr": (-math.inf, math.inf)}

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


def colour_and_marker(method: str) -> tuple[str, str]:
    """Of a method's family, whatever parts of it are others: by its place among the baselines, or among all others of
    conf/method.

    Of the others those of the reuse curve come first, in its order, which keeps theirs as methods are added; then the
    rest, by name.
    """
    alone, method = baselines(), method.partition(" + ")[0]
    if method in alone:
        return BASELINE_LOOKS[alone.index(method) % len(BASELINE_LOOKS)]
    known = [*listed_methods(CURVE), *known_methods()]
    families = list(dict.fromkeys(family(name) for name in known if name not in alone))
    if family(method) not in families:
        return UNKNOWN_LOOK
    place = families.index(family(method))
    return COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]


def colours_and_markers(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Of each of some methods that share a figure: its family's, and where several families have the same, as methods
    with other parts do, that of the first; the others' are those that none has."""
    own = {family(method): colour_and_marker(method) for method in methods}
    first = {pair: each for each, pair in reversed(own.items())}
    every = zip(COLOURS * len(MARKERS), MARKERS * len(COLOURS), strict=True)
    free = (pair for pair in every if pair not in first)
    pairs = {each: pair if first[pair] == each else next(free) for each, pair in own.items()}
    return {method: pairs[family(method)] for method in methods}


def is_hollow(method: str) -> bool:
    return method.endswith("_slow")


def look(method: str, option: int = 0, pair: tuple[str, str] | None = None) -> dict[str, Any]:
    """Of a method's line, as matplotlib's arguments; ``option`` is the place of an option's value among the others, and
    ``pair`` its colour and marker where they are not its family's."""
    colour, marker = colour_and_marker(method) if pair is None else pair
    return {
        "color": colour,
        "marker": marker,
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
