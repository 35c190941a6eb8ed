"""Published forecasts against what the official code gives, case by case (tests/goldens/forecast/README.md).

FreqCa's are not among them: no forecast here splits an output into bands of frequency.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowcache.forecast.differences import ByDifferences
from flowcache.forecast.hermite import Hermite
from flowcache.forecast.history import OutputHistory
from flowcache.forecast.taylor import Taylor
from flowcache.schedule import ChunkStep
from tests.golden_files import manifest, tensors

CASES, TENSORS = manifest("forecast/forecast")["cases"], tensors("forecast/forecast")
BASES = {"hicache": "hermite", "taylor_scaled": "taylor_scaled"}
TOLERANCE = 1e-5


def forecast_of(rule: str, settings: dict[str, Any]) -> ByDifferences:
    if rule == "diffusers_ts":  # forms differences always
        return Taylor(order=settings["max_order"], differences="published")
    options = {"order": settings["order"], "first": settings["first"], "differences": "published"}
    if rule == "hicache":
        return Hermite(**options, scale=settings["scale"], basis=BASES[settings["mode"]])
    return Taylor(**options)


def test_every_published_rule_is_among_the_cases():
    assert {case["rule"] for case in CASES.values()} == {"taylorseer", "taylorseer_dit", "diffusers_ts", "hicache"}


@pytest.mark.parametrize("name", CASES)
def test_a_published_forecast_gives_what_the_official_code_gives(name):
    case = CASES[name]
    path, history = TENSORS["path"], OutputHistory(forecast_of(case["rule"], case["settings"]))
    outputs = []
    for index, kind in enumerate(case["kind"]):
        step = ChunkStep(0, index, 999 - 1.5 * index**2, 999 - 1.5 * (index + 1) ** 2)  # times that are no steps
        if kind == "full":
            history.update(step, path[index], torch.empty(0))
            outputs.append(path[index])
        else:
            outputs.append(history.predict(step))
    torch.testing.assert_close(torch.stack(outputs), TENSORS[f"{name}.out"], atol=TOLERANCE, rtol=0)


def test_divided_differences_are_another_forecast():
    """So that the cases above are about the published form."""
    case = CASES["taylorseer_o2"]
    history = OutputHistory(Taylor(order=2))
    for index in (1, 2, 6):  # gaps of one and of four
        history.update(ChunkStep(0, index, float(index), index + 1.0), TENSORS["path"][index], torch.empty(0))
    assert case["kind"][9] == "forecast"
    off = history.predict(ChunkStep(0, 9, 9.0, 10.0)) - TENSORS["taylorseer_o2.out"][9]
    assert off.abs().max() > 1e-2
