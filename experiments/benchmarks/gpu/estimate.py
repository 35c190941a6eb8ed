"""How long a case will take: by the device's ceiling first, then by what its model's cases took."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from experiments.benchmarks.gpu.cases import Case

# Dense bfloat16 TFLOP/s, by what a device's name holds; until micro has measured them.
CEILINGS_TFLOPS = {"H200": 790.0, "H100": 700.0, "A100": 260.0, "A800": 260.0, "4090": 160.0}
UNKNOWN_TFLOPS = {"cuda": 100.0, "cpu": 0.02}
# Of the ceiling, a whole video's rate, with its decoding and its warm-up; small networks on a CPU mostly start kernels.
SHARE = {"cuda": 0.5, "cpu": 0.2}
SETUP_S = {"cuda": 10.0, "cpu": 3.0}  # a model of random weights, its configuration, and first calls
MARGIN = 1.15  # on what follows from measured cases


class Estimates:
    """Seconds of cases on a device; ``learn`` is told what was measured, in any order.

    Args:
        device: "cpu" or "cuda".
        name: of the device.
    """

    def __init__(self, device: str, name: str) -> None:
        self._kind = torch.device(device).type
        ceiling = next((rate for part, rate in CEILINGS_TFLOPS.items() if part in name), UNKNOWN_TFLOPS[self._kind])
        self._rate = SHARE[self._kind] * ceiling * 1e12
        self._rates: dict[str, list[float]] = defaultdict(list)
        self._at_least: dict[str, float] = {}

    def seconds(self, case: Case) -> float:
        work, flops = case.work, _flops(case)
        rates = self._rates.get(_model(case))
        running = flops / self._rate if not rates else MARGIN * flops / min(rates)
        return max(SETUP_S[self._kind] + work.fixed_s + running, self._at_least.get(case.name, 0.0))

    def learn(self, case: Case, wall_s: float, figures: dict[str, Any]) -> None:
        """From a case that was measured, in so many seconds."""
        if "matmul_tflops" in figures and self._kind == "cuda":  # a CPU's is of products that are far larger
            self._rate = SHARE[self._kind] * figures["matmul_tflops"] * 1e12
        if case.work.subject is not None and not case.work.fixed_s:
            running = max(wall_s - SETUP_S[self._kind], 0.3 * wall_s)
            self._rates[_model(case)].append(_flops(case) / running)

    def overran(self, case: Case, ran_s: float) -> None:
        """A case that was broken off takes longer than it ran."""
        self._at_least[case.name] = 1.5 * ran_s


def _model(case: Case) -> str:
    """The overrides that name it."""
    return "" if case.work.subject is None else case.work.subject.overrides[0]


def _flops(case: Case) -> float:
    work = case.work
    if work.subject is None:
        return 0.0
    counted = work.subject.counted(work.method, *work.overrides)
    return counted.flops * (work.forwards / counted.chunk_steps if work.forwards else work.share)
