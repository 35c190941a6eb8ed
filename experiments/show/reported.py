"""Figures that papers report, as results/reported/ holds them, and how a run of ours deviates from what they ran."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments.job.cli import compose_config
from experiments.job.job import generation_options
from experiments.job.paths import ROOT

# What the published code runs, by model and class of method (docs of flowcache.method); thresholds by the paper's rows.
_CODE = {
    ("magi", "flowcache"): {
        "last_step": "global",
        "distance": "embedded_latent",
        "reuse": "displacement",
        "refresh_clean_kv": False,
        "near_clean": False,
        "warmup_steps": 5,
    },
    ("magi", "teacache"): {
        "published": True,
        "distance": "embedded_latent",
        "reuse": "displacement",
        "refresh_clean_kv": False,
    },
    ("skyreels", "flowcache"): {
        "distance": "rescaled_modulation",
        "refresh_clean_kv": False,
        "prefix": "published",
        "warmup_steps": 5,
    },
    ("skyreels", "teacache"): {"published": True, "distance": "rescaled_modulation"},
}
_THRESHOLDS = {
    ("magi", "flowcache_slow"): 0.010,
    ("magi", "flowcache_fast"): 0.015,
    ("skyreels", "flowcache_slow"): 0.10,
    ("skyreels", "flowcache_fast"): 0.15,
}


def read_reported(model: str) -> tuple[pd.DataFrame, str]:
    """The paper's main rows of a model, by method, and what they were measured on (the file's first line)."""
    path = ROOT / "results" / "reported" / f"{model}_main.csv"
    first_line = path.read_text(encoding="utf-8").partition("\n")[0]
    return pd.read_csv(path, index_col="method", comment="#"), first_line.removeprefix("# ")


def setting_deviation(model: str, settings: dict[str, Any]) -> str | None:
    """How a job's settings differ from those of the reported rows (conf/setting/paper.yaml); None if they do not."""
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


def method_deviation(model: str, method: str, options: dict[str, Any]) -> str | None:
    """How a method's options differ from the published code's, or that no paper reports it; None if they do not."""
    if method == "vanilla":
        return None
    family = method.partition("_")[0]
    if (model, family) not in _CODE:
        return "no published row: this suite's own baseline"
    published = dict(_CODE[model, family])
    if family == "teacache":
        threshold = [f"threshold {options['threshold']:g} (the paper gives none)"]
    else:
        published["threshold"] = _THRESHOLDS[model, method]
        threshold = []
    differing = [
        f"{key} {_shown(options.get(key))} (published: {_shown(value)})"
        for key, value in published.items()
        if options.get(key) != value
    ]
    return ", ".join(threshold + differing) or None


def _shown(value: Any) -> str:
    return "the model's sound form" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
