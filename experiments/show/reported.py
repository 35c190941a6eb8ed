"""Figures that papers report, as results/reported/ holds them, and how a run of ours deviates from what they ran."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from experiments.job.cli import compose_config
from experiments.job.job import generation_options
from experiments.job.paths import ROOT

REPORTED = ROOT / "results" / "reported"


def read_reported(model: str) -> tuple[pd.DataFrame, str]:
    """The paper's main rows of a model, by method, and what they were measured on (the file's first line).

    Of a model that no paper ran these methods on there is no file, and no row.
    """
    path = REPORTED / f"{model}_main.csv"
    if not path.is_file():
        return pd.DataFrame(columns=["pflops", "speedup"], index=pd.Index([], name="method")), ""
    first_line = path.read_text(encoding="utf-8").partition("\n")[0]
    return pd.read_csv(path, index_col="method", comment="#"), first_line.removeprefix("# ")


def setting_deviation(model: str, settings: dict[str, Any]) -> str | None:
    """How a job's settings differ from those of the reported rows (conf/setting/paper.yaml); None if they do not, or
    there are none."""
    if read_reported(model)[0].empty:
        return None
    config = compose_config([f"model={model}", "setting=paper"])
    reported = {"num_frames": config.setting.num_frames, **generation_options(config), "device": "cuda"}
    ours = {key: value for key, value in settings.items() if key not in ("model", "setting")}
    embedded = settings["setting"] == "embedded"
    if embedded:  # what is the small checkpoint's own, saying that it is one covers
        reported = {key: value for key, value in reported.items() if key in ours}
    differing = [
        f"{key} {ours.get(key, 'its own')} (reported: {reported.get(key, 'its own')})"
        for key in sorted({*ours, *reported})
        if ours.get(key) != reported.get(key)
    ]
    if embedded:
        differing.insert(0, "a small trained model, not the official weights")
    return "all rows: " + ", ".join(differing) if differing else None


def method_deviation(model: str, method: str, options: Mapping[str, Any]) -> str | None:
    """How a method's options, by dotted name, differ from the published code's, or that the paper has no row of it;
    None if they do not, or it has no row of this model at all."""
    if read_reported(model)[0].empty:
        return None
    rows = OmegaConf.to_container(OmegaConf.load(REPORTED / f"{model}_options.yaml"))
    if method not in rows:
        return "no row of the paper's"
    differing = []
    for key, value in rows[method].items():
        published = "the paper gives none" if value is None else f"published: {_shown(value)}"
        if value is None or options.get(key) != value:
            differing.append(f"{key} {_shown(options.get(key))} ({published})")
    return ", ".join(differing) or None


def _shown(value: Any) -> str:
    return "the model's sound form" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
