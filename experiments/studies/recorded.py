"""What this repository has recorded of a method or a KV policy: rows of the committed tables, each with its source."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.job.experiment import read_experiment
from experiments.show.results import TABLES

_SHOWN = "results/tables"


@dataclass(frozen=True)
class Figures:
    """Means over prompts, as a table has them.

    Attributes:
        psnr_db, ci95_db: against the baseline's videos, each at most 60 dB; half the 95 % interval, None where unknown.
        num_videos: that they are means of.
        source: the table's file.
        setting: that it was measured in.
        baseline: what the compute left is of, and the videos were compared with.
        value: of the option that the table tells, as it is typed; None where it tells none.
    """

    psnr_db: float
    ci95_db: float | None
    num_videos: int
    source: str
    setting: str
    baseline: str
    compute_left: float | None = None
    value: str | None = None

    @property
    def least_db(self) -> float:
        """The mean with its interval taken off."""
        return self.psnr_db - (self.ci95_db or 0.0)

    @property
    def quality(self) -> str:
        interval = "" if self.ci95_db is None else f" ± {self.ci95_db:.1f}"
        return f"{self.psnr_db:.1f}{interval} dB of PSNR against {self.baseline}"


@dataclass(frozen=True)
class Speed:
    """How much faster than vanilla, timed in pairs; ``low`` and ``high`` are of a 95 % interval, if there is one."""

    speedup: float
    low: float | None
    high: float | None
    num_pairs: int
    source: str


def method_figures(
    model: str, setting: str, method: str, curve: str, option: str, tables: Mapping[str, str]
) -> list[Figures]:
    """Of a method at every value of its option that the first table with it tells, cheapest first; none if none has it.

    Args:
        setting: whose tables are looked at first; then those of the embedded model.
        curve: how tables of curves call the method.
        tables: names of tables, with the experiments that they are of.
    """
    for measured in dict.fromkeys((setting, "embedded")):
        for table, experiment in tables.items():
            rows, source = _rows(model, measured, table)
            baseline = read_experiment(experiment, [f"model={model}"])["baseline"] if rows else ""
            found = []
            for row in rows:
                own = row.get("family") == curve or row.get("method") == method
                compute = _number(row.get("compute_left"))
                if own and compute is not None and (psnr := _number(row.get("psnr"))) is not None:
                    count = int(row.get("psnr_n") or row["n"])
                    told = row.get("told") or row.get("options") or ""
                    figures = (psnr, _number(row.get("psnr_ci95")), count, source, measured, baseline)
                    found.append(Figures(*figures, compute, _value(told, option)))
            if found:
                return sorted(found, key=lambda each: each.compute_left)
    return []


def kv_figures(model: str, setting: str, record: Mapping[str, str]) -> Figures | None:
    """Of a KV policy: the one row whose columns are those of ``record``, ``table`` aside; None where there is none."""
    for measured in dict.fromkeys((setting, "embedded")):
        rows, source = _rows(model, measured, record["table"])
        wanted = [(name, value) for name, value in record.items() if name != "table"]
        for row in rows:
            psnr = _number(row.get("psnr"))
            if psnr is not None and all(row.get(name) == value for name, value in wanted):
                window = "" if row.get("window_frames") != "all" else " without a window"
                baseline = f"{row.get('baseline') or 'vanilla'}{window}"
                return Figures(psnr, _number(row.get("psnr_ci95")), int(row["psnr_n"]), source, measured, baseline)
    return None


def speed(model: str, setting: str, method: str, value: str | None, option: str) -> Speed | None:
    """Of a method in the main table, at the same value of its option where the table tells it; None without times."""
    for measured in dict.fromkeys((setting, "embedded")):
        rows, source = _rows(model, measured, "main")
        for row in rows:
            told = _value(row.get("options") or "", option)
            times = _number(row.get("speedup"))
            if row.get("method") == method and times is not None and told in (None, value):
                low, high = (_number(row.get(f"speedup_{end}")) for end in ("low", "high"))
                return Speed(times, low, high, int(row["speedup_n"]), source)
    return None


def _rows(model: str, setting: str, table: str) -> tuple[list[dict[str, str]], str]:
    """A table's rows and how its file is called; no rows where there is no such table."""
    name = f"{model}_{setting}_{table}.csv"
    path = Path(TABLES, name)
    if not path.is_file():
        return [], f"{_SHOWN}/{name}"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)), f"{_SHOWN}/{name}"


def _value(told: str, option: str) -> str | None:
    """Of an option in a text such as 'reuse.steps [0, 3], reuse.share 0.5', as it is typed."""
    found = re.search(rf"(?:^|, ){re.escape(option)} (\[[^\]]*\]|[^,]+)", told)
    return found and found[1].replace(" ", "")


def _number(text: str | None) -> float | None:
    return float(text) if text else None
