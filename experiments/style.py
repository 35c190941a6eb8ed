"""How figures look: one column of a paper wide, colours that colour-blind readers can tell apart."""

from __future__ import annotations

from contextlib import AbstractContextManager

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
LINE_STYLES = ("-", "--", "-.", ":")
# A method looks the same in every figure: a colour a family, hollow where it is the slow one.
FAMILY_COLOURS = {"flowcache": BLUE, "teacache": ORANGE, "every_k": GREEN, "vanilla": BLACK}
FAMILY_MARKERS = {"flowcache": "o", "teacache": "s", "every_k": "^", "vanilla": "D"}
COMPUTED, REUSED, HELD = BLUE, ORANGE, PURPLE

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
    """'flowcache_fast' -> 'flowcache', 'vanilla_kv' -> 'vanilla'."""
    return next((name for name in FAMILY_COLOURS if method.startswith(name)), method)
