"""(a) The two ceilings of a device: bfloat16 matrix product and copy bandwidth."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from experiments.benchmarks.gpu.subject import timed

RUNS = 30


def ceilings(device: str, size: int = 8192, num_bytes: int = 4 * 2**30) -> dict[str, Any]:
    """TFLOP/s of a square product of normal numbers, and GB/s of a copy, bytes read and written counted."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = timed(lambda: left @ right, device, RUNS)
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device).zero_()
    target = torch.empty_like(source)
    copy = timed(lambda: target.copy_(source), device, RUNS)
    return {
        "matmul_size": size,
        "matmul_tflops": 2 * size**3 / product.median / 1e12,
        "matmul_s": asdict(product),
        "copy_bytes": num_bytes,
        "copy_gb_per_s": 2 * num_bytes / copy.median / 1e9,
        "copy_s": asdict(copy),
        "runs": RUNS,
    }
