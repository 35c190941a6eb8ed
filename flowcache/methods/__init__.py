"""The suite's methods by their names, at their options for a model and setting: the files of ``conf/``, without Hydra.

The files here are what those compose to, and are written by ``python -m experiments.job.shipped``; a test holds them
equal. What methods were calibrated to lies in ``plans/`` and ``ratios/``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from flowcache.kv.policy import KvPolicy
from flowcache.method import Method
from flowcache.part import Part
from flowcache.reuse.plan import Plan

MODELS = ("magi", "skyreels", "wan", "wan_multistep")
SETTINGS = ("embedded", "paper")
CALIBRATED = {"plan": "plans", "table": "ratios"}  # folders of the files that options name


def names() -> tuple[str, ...]:
    """Of all methods, such as "flowcast_fast"."""
    return tuple(_described(MODELS[0], SETTINGS[0]))


def named(name: str, model: str, setting: str = "paper") -> Method:
    """A method by its name, as ``python run.py method=<name> model=<model> setting=<setting>`` runs it.

    Args:
        name: one of ``names()``.
        model: of MODELS. Thresholds, warm-ups and plans are a model's.
        setting: "paper" for full-size models, "embedded" for the small ones of the repository.

    Raises ValueError for an unknown name, and ImportError for other people's parts, which come with a checkout alone.
    """
    for what, value, known in (("model", model, MODELS), ("setting", setting, SETTINGS), ("method", name, names())):
        if value not in known:
            close = difflib.get_close_matches(str(value), known, n=1)
            guess = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"{what}={value!r} is unknown; {guess}there are {', '.join(known)}")
    try:
        return of_description(_described(model, setting)[name])
    except ModuleNotFoundError as error:
        raise ImportError(
            f"method {name!r} has a part of other people's ({error.name}), which comes with a checkout of FlowCache "
            "Bench and not with the library alone; run from a checkout, or choose another method"
        ) from error


def of_description(description: Mapping[str, Any]) -> Method:
    """The method that ``Method.described`` describes. Raises ValueError for a calibration that is not here, or is
    another."""
    options = dict(description)
    kv = dict(options.pop("kv"))
    store, budget = _part(kv.pop("store")), kv.pop("budget")
    parts = {name: _part(options.pop(name)) for name in ("reuse", "forecast")}
    return Method(**parts, kv=KvPolicy(select=_part(kv), store=store, budget=budget), **options)


def plan(name: str) -> Plan:
    """A calibrated plan by its name, such as "skyreels_embedded". Raises ValueError where there is none."""
    return Plan.read(_calibration("plan", name))


@cache
def _described(model: str, setting: str) -> dict[str, Any]:
    text = (files(__name__) / f"{model}_{setting}.json").read_text(encoding="utf-8")
    return json.loads(text)


def _part(described: Mapping[str, Any]) -> Part:
    options = dict(described)
    module, _, kind = options.pop("part").rpartition(".")
    for option, value in options.items():
        if isinstance(value, Mapping) and option in CALIBRATED:
            options[option] = _same_calibration(option, value[option], value["sha256"])
    return getattr(import_module(module), kind)(**options)


def _same_calibration(option: str, name: str, sha256: str) -> str:
    path = _calibration(option, name)
    own = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    if own != sha256:
        raise ValueError(
            f"the {option} {name} here is another (sha256 {own}) than the described one ({sha256}); give the part its "
            f"file: {option}=<path>"
        )
    return path


def _calibration(option: str, name: str) -> str:
    folder = files(__name__) / CALIBRATED[option]
    path = folder / f"{name}.json"
    if not path.is_file():
        known = sorted(each.name.removesuffix(".json") for each in folder.iterdir())
        raise ValueError(f"there is no {option} {name!r}; there are {', '.join(known)}")
    return str(path)
