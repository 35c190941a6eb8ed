"""Figures that papers report, as results/reported/ holds them."""

from __future__ import annotations

import pandas as pd

from experiments.job import ROOT


def read_reported(model: str) -> tuple[pd.DataFrame, str]:
    """The paper's main rows of a model, by method, and what they were measured on (the file's first line)."""
    path = ROOT / "results" / "reported" / f"{model}_main.csv"
    first_line = path.read_text().partition("\n")[0]
    return pd.read_csv(path, index_col="method", comment="#"), first_line.removeprefix("# ")
