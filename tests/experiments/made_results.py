"""Made-up committed results: files that say of which code, machine and videos they are, as the commands write them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from experiments.committed.ledger import Made
from experiments.committed.listed import Result
from experiments.committed.said import said_by
from experiments.records import SCHEMA_VERSION, code_version
from experiments.show.results import Column, Destination, Table

OLD, NEW = "0" * 16, "1" * 16
SOURCE = "magi, embedded, n = 8 prompts; a CPU (R); torch 2; version {}, records of format {}; weights w, code c, d"
FILES = (
    *(f"results/tables/a.{ending}" for ending in ("md", "tex", "csv")),
    *(f"results/figures/a.{ending}" for ending in ("png", "svg")),
)
DRAWN = Result("a", None, (("sweep", "experiment=ablation_lambda"), ("ablations", "publish=true")), FILES)
COUNTED = Result("counted", None, (("paper_flops",),), ("results/tables/counted.md",), counted=True)
NOTED = Made(NEW, "a CPU", 60.0, 5.0, "2026-12-01T10:00:00+00:00", "inputs")


def save(root: Path, stem: str, version: str, record_format: int = SCHEMA_VERSION, has_n: bool = True) -> None:
    """A table and a figure as the commands write them."""
    source = SOURCE.format(version, record_format)
    column = Column("n" if has_n else "m", "value")
    text = f"Measured here ({source.replace(', n = 8 prompts', '')}): of few. More."
    to, figure = Destination(root / "results"), plt.figure(figsize=(1, 1), dpi=20)
    to.save_table(stem, Table("A table.", text, (column,), pd.DataFrame({"value": [8]})))
    to.save_figure(figure, stem, source if has_n else source.replace(", n = 8 prompts", ""))


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


def save_both(root: Path) -> None:
    """All files of ``DRAWN`` and of ``COUNTED``, of one version."""
    save(root, "a", NEW)
    write(root, COUNTED.files[0], f"**Counted.** Nothing was run; version {NEW}.\n")


def check_says_all(path: Path) -> None:
    """That a file says it is of today's code, of how many videos and on which machine."""
    said = said_by(path)
    assert said.version == code_version(), path.name
    assert said.has_n, path.name
    assert said.machine is not None, path.name
    assert not said.is_mixed, path.name
