"""Rows of the leaderboard's table: every published setting of a family, measured here, and what papers report of it.

Measured rows are of four tables: each method at its own options, the points of the equal-compute curves, KV policies
and KV precision. Reported ones are a group of their own, with the digits that the paper gives.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.show.papers import DOUBT, PAPERS, papers_of
from experiments.show.published import Published, read_published
from experiments.show.report import table_cell
from experiments.show.reported import REPORTED, read_reported
from experiments.show.results import Column
from experiments.show.tables import with_shares
from experiments.show.traits import Traits, as_named_here, traits_of

COLUMNS = (
    Column("compute left", "compute_left", "{:.3f}", "± {compute_left_ci95:.3f}"),
    Column("speed-up", "speedup", "{:.2f}x", "{speedup_low:.2f} to {speedup_high:.2f}"),
    Column("efficiency", "efficiency", "{:.2f}", "{efficiency_low:.2f} to {efficiency_high:.2f}"),
    Column("PSNR dB", "psnr", "{:.2f}", "± {psnr_ci95:.2f}", flag="another_video"),
    Column("SSIM", "ssim", "{:.4f}", "± {ssim_ci95:.4f}", flag="another_video"),
    Column("LPIPS", "lpips", "{:.4f}", "± {lpips_ci95:.4f}", flag="another_video"),
    Column("captions right", "caption_right", "{:.0%}", "{caption_right_low:.0%} to {caption_right_high:.0%}"),
    Column("KV MiB", "kv_mib", "{:.2f}"),
    Column("n", "n", "{:.0f}"),
)
CURVES = ("field", "placement")  # of which the first that is there gives the points at equal compute
_PAPER_KEYS = {"psnr": "psnr_db"}
_FOLLOWS = {"compute_left": ".3f", "efficiency": ".2f"}  # from what FlowCache's table has
_NOTHING = {"value": None, "text": "-", "spread": ""}


def groups_of(model: str, stem: str, title: str) -> list[dict[str, Any]]:
    """A family's groups of rows that sort among themselves: what was measured here against the same baseline, and what
    papers report.

    Args:
        model: of conf/model.
        stem: that the names of its tables begin with.
        title: of the family.
    """
    by_baseline: dict[str, list[dict[str, Any]]] = {}
    for name, rows_of in _TABLES.items():
        table = _table(stem, name)
        if table is not None:
            by_baseline.setdefault(table.baseline or "its baseline", []).extend(rows_of(table))
    groups = [
        {"family": model, "kind": "measured", "title": f"{title}, measured here against {baseline}", "rows": rows}
        for baseline, rows in by_baseline.items()
    ]
    reported = reported_rows(model)
    groups.append({"family": model, "kind": "reported", "title": f"{title}, reported by papers", "rows": reported})
    return [group for group in groups if group["rows"]]


def _table(stem: str, name: str) -> Published | None:
    names = CURVES if name == "curves" else (name,)
    return next((table for each in names if (table := read_published(f"{stem}_{each}")) is not None), None)


def _main_rows(table: Published) -> list[dict[str, Any]]:
    data = table.data
    options = data["options"] if "options" in data else pd.Series(None, data.index, dtype=object)
    return _measured_rows(table, data["method"], options, data)


def _curve_rows(table: Published) -> list[dict[str, Any]]:
    """With the PSNR that the main tables have too: uncapped, without identical videos."""
    data = table.data.drop(columns=["psnr", "psnr_ci95"], errors="ignore").rename(
        columns=lambda name: name.replace("psnr_uncapped", "psnr")
    )
    return _measured_rows(table, data["family"], data["told"], data)


def _kv_rows(table: Published) -> list[dict[str, Any]]:
    """What is set is what the Markdown shows of it; a selector that the name does not say is said."""
    data = table.data.rename(columns=lambda name: name.replace("flops_share", "compute_left"))
    shown = [name for name in table.headings if name.startswith("kv.") and name in data]

    def told(row: pd.Series) -> str:
        return ", ".join(f"{name} {_plain(row[name])}" for name in shown if _is_set(row[name]))

    def named(row: pd.Series) -> str:
        part = str(row["kv.part"]).split(".")[-2]
        has_budget = _is_set(row["kv.budget"])
        return f"{row['method']} + {part}" if has_budget and " + " not in row["method"] else row["method"]

    return _measured_rows(table, data.apply(named, axis=1), data.apply(told, axis=1), data)


_TABLES = {"main": _main_rows, "curves": _curve_rows, "kv_policies": _kv_rows, "kv_precision": _kv_rows}


def _is_set(value: Any) -> bool:
    return not pd.isna(value) and value != "-"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _measured_rows(table: Published, names: pd.Series, told: pd.Series, data: pd.DataFrame) -> list[dict[str, Any]]:
    keys = {key for column in COLUMNS for key in _keys(column)}
    data = data.reindex(columns=[*data.columns, *sorted(keys - set(data.columns))])
    data["another_video"] = data["another_video"].eq(True)
    source = {
        "link": table.path,
        "name": table.path.stem.partition("_embedded_")[2],
        "machine": table.source.machine,
        "codes": table.source.codes,
        "busy": table.source.is_timed_on_a_busy_machine,
        "doubt": None,
    }
    rows = []
    for name, options, (_, row) in zip(names, told, data.iterrows(), strict=True):
        cells = [_cell(column, row) for column in COLUMNS]
        rows.append({"method": name, "options": "" if pd.isna(options) else options, "cells": cells, **source})
    return [row | _told(traits_of(row["method"])) for row in rows]


def _cell(column: Column, row: pd.Series) -> dict[str, str | None]:
    """A PSNR says how many videos it leaves out, for they are the baseline's own; of nothing else it is endless."""
    cell = table_cell(column, row)
    identical = row.get("identical_videos", float("nan"))
    if column.key != "psnr" or pd.isna(identical):
        return cell
    if cell["value"] is None:
        return {"value": "Infinity", "text": "identical", "spread": ""}
    return cell | {"spread": f"{cell['spread']}; {identical:.0f} identical".removeprefix("; ")}


def _keys(column: Column) -> set[str]:
    return {column.key, *re.findall(r"{(\w+)", column.spread)} | ({column.flag} if column.flag else set())


def _told(traits: Traits | None) -> dict[str, Any]:
    if traits is None:
        return {"of": None, "calibrated": None, "section": None}
    return {"of": traits.kind, "calibrated": traits.calibrated, "section": traits.section}


def reported_rows(model: str) -> list[dict[str, Any]]:
    """FlowCache's rows, with what follows from them, and then every other paper's."""
    main, source = read_reported(model)
    rows = []
    if len(main):
        path = REPORTED / f"{model}_main.csv"
        texts = pd.read_csv(path, comment="#", dtype=str, index_col="method")
        derived = with_shares(main)
        for name, row in texts.iterrows():
            follows = {key: f"{derived.loc[name, key]:{form}}" for key, form in _FOLLOWS.items()}
            rows.append(_reported_row(name, row.to_dict() | follows, path, source, "", None))
    for paper in papers_of(model):
        for row in paper.rows.to_dict("records"):
            said = "; ".join(row[key] for key in ("checkpoint", "setting", "hardware"))
            doubt = None if pd.isna(row[DOUBT]) else row[DOUBT]
            rows.append(_reported_row(row["method"], row, PAPERS / f"{paper.name}.csv", paper.title, said, doubt))
    return rows


def _reported_row(
    name: str, texts: dict[str, Any], path: Path, title: str, setting: str, doubt: str | None
) -> dict[str, Any]:
    cells = []
    for column in COLUMNS:
        text = texts.get(_PAPER_KEYS.get(column.key, column.key))
        if text is None or pd.isna(text):
            cells.append(_NOTHING)
        else:
            cells.append({"value": text, "text": f"{text}x" if column.key == "speedup" else text, "spread": ""})
    if not pd.isna(smaller := texts.get("kv_smaller", float("nan"))):
        place = [column.key for column in COLUMNS].index("kv_mib")
        cells[place] = {"value": None, "text": f"{smaller}x smaller", "spread": ""}
    row = {"method": name, "options": setting, "cells": cells, "link": path, "name": title, "machine": None}
    return row | {"codes": (), "busy": False, "doubt": doubt} | _told(traits_of(as_named_here(name)))
