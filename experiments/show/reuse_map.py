"""Where each method computed, reused and forecast, chunk by chunk and row by row, from traces."""

from __future__ import annotations

from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from experiments.show.style import COLUMN_WIDTH_IN, COMPUTED, FORECAST, HELD, REUSED, TITLE_CHARACTERS, styled

ACTIONS = ("compute", "reuse", "forecast", "held")
_COLOURS = (COMPUTED, REUSED, FORECAST, HELD)
_NAMES = ("computed", "reused", "forecast", "held back")


def action_map(trace: pd.DataFrame) -> np.ndarray:
    """[chunks, rows]: place of the action in ``ACTIONS``, -1 where the chunk is not active."""
    actions = np.full((trace["chunk"].max() + 1, trace["row"].max() + 1), -1)
    actions[trace["chunk"], trace["row"]] = trace["action"].map(ACTIONS.index)
    return actions


@styled()
def draw_reuse_map(traces: dict[str, pd.DataFrame], subject: str) -> Figure:
    """A panel a method, of one video: rows across, chunks down."""
    maps = {name: action_map(trace) for name, trace in traces.items()}
    height = sum(0.09 * len(actions) + 0.25 for actions in maps.values())
    figure, panels = plt.subplots(len(maps), 1, figsize=(COLUMN_WIDTH_IN, height + 0.7), squeeze=False, sharex=True)
    colours = ListedColormap(_COLOURS)
    for axes, (name, actions) in zip(panels[:, 0], maps.items(), strict=True):
        shown = np.ma.masked_equal(actions, -1)
        axes.pcolormesh(shown, cmap=colours, vmin=-0.5, vmax=len(ACTIONS) - 0.5, edgecolors="none", rasterized=True)
        axes.invert_yaxis()
        axes.set_yticks(np.arange(0, len(actions), max(1, len(actions) // 4)) + 0.5)
        axes.set_yticklabels(range(0, len(actions), max(1, len(actions) // 4)))
        axes.grid(visible=False)
        axes.set_title(f"{name}: {(shown == 0).sum() / shown.count():.0%} of chunk steps computed", loc="left", pad=3)
    panels[-1, 0].set_xlabel("row of the sampler")
    panels[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.supylabel("chunk", fontsize=7)
    figure.suptitle(fill(subject, TITLE_CHARACTERS), fontsize=6)
    present = [place for place in range(len(ACTIONS)) if any((actions == place).any() for actions in maps.values())]
    handles = [Patch(color=_COLOURS[place], label=_NAMES[place]) for place in present]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure
