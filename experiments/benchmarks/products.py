"""How much faster a method's matrix products are by themselves: the most that skipping can gain on this machine.

``python -m experiments.bench products [products_repeats=6] [model=magi] [method=flowcast_fast] [key=value ...]``

Small products take more time an operation than large ones, and skipping leaves small ones: a row in which one chunk
computes has products a fifth as high as one in which five do. This notes every linear layer and every attention of the
baseline's video and of the method's, runs them again in order with nothing between them, the network's own weights and
inputs of the same shapes, and compares that with the whole generation, without text and decoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._pytree import tree_map_only

from eval.eager import EagerDispatchMode
from eval.latency import Spread
from eval.speedup import speedup
from experiments.benchmarks.options import whole_number
from experiments.job.errors import BadInput
from experiments.job.job import Job
from experiments.job.units import counted
from experiments.run.runner import Runner
from flowcache.clock import SectionClock
from flowcache.method import Method
from flowcache.sampler import sample
from flowcache.trace import Trace

OPTIONS = ("products_repeats",)
PRODUCTS = ("linear", "matmul", "mm", "addmm", "bmm", "scaled_dot_product_attention")


class Products(EagerDispatchMode):
    """Notes the products that run while it is active: with parameters themselves, and of every other tensor its shape,
    as a buffer that all of the same shape share."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: dict[tuple[Any, ...], Tensor] = {}
        self.calls: list[tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in PRODUCTS:
            self.calls.append((func, *tree_map_only(Tensor, self._kept, (args, kwargs))))
        return func(*args, **kwargs)

    def _kept(self, given: Tensor) -> Tensor:
        if isinstance(given, Parameter):
            return given
        key = tuple(given.shape), given.stride(), given.dtype, given.device
        if key not in self._buffers:
            self._buffers[key] = torch.empty_strided(*key[:2], dtype=key[2], device=key[3]).fill_(1.0)
        return self._buffers[key]

    @torch.inference_mode()
    def run(self) -> None:
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


def run(job: Job, products_repeats: str = "6") -> None:
    """Print seconds of both and their products, and both speed-ups. Raises BadInput for the baseline itself."""
    repeats, runner, prompt = whole_number("products_repeats", products_repeats), Runner(job), job.prompts[0]
    if job.is_baseline:
        raise BadInput(f"{job.method_name} is what others are compared with; choose another method")
    runner.check(prompt)
    methods = {job.baseline: job.baseline_method, job.method_name: job.method}
    products: dict[str, Products] = {}
    flops: dict[str, int] = {}
    for name, method in methods.items():
        products[name], trace = noted(runner, method, prompt)
        flops[name] = trace.flops
    alone: dict[str, list[float]] = {name: [] for name in methods}
    whole: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats):
        for name, method in methods.items():
            alone[name].append(seconds(job, products[name].run))
            whole[name].append(seconds(job, lambda method=method: _generated(runner, method, prompt)))
    print(
        f"{job.model_name}, {job.setting_name} setting, {job.num_frames} frames, without text and decoding; seconds: "
        f"median (fastest-slowest) of {repeats}, in turn"
    )
    for name in methods:
        own, all_of_it = Spread.of(alone[name]), Spread.of(whole[name])
        print(f"{name:18} {_told(all_of_it)}, its {counted(len(products[name].calls), 'product')} alone {_told(own)}")
    left = [flops[job.method_name] / flops[job.baseline]] * repeats
    for title, taken in (("speed-up", whole), ("products alone", alone)):
        gain = speedup(taken[job.method_name], taken[job.baseline], left)
        middle, low, high = gain.efficiency
        interval = "" if math.isnan(low) else f" (95 % {low:.3f}-{high:.3f})"  # there is none of few pairs
        print(f"{title:18} {gain.median:.3f}x, efficiency {middle:.3f}{interval} at {left[0]:.3f} of the FLOPs")


def noted(runner: Runner, method: Method, prompt: str) -> tuple[Products, Trace]:
    """The products of a video, without text and decoding, and what happened."""
    products = Products()
    with products:
        return products, _generated(runner, method, prompt)


def _generated(runner: Runner, method: Method, prompt: str) -> Trace:
    job, trace = runner.job, Trace()
    generation = runner.model.generation(prompt, job.num_frames, method, job.seed, **job.generation_options)
    for _ in sample(generation, trace):
        pass
    return trace


def seconds(job: Job, action: Callable[[], Any]) -> float:
    """Of an action, with what it left to the device."""
    clock = SectionClock(job.device)
    with clock("all"):
        action()
    return clock.seconds()["all"]


def _told(spread: Spread) -> str:
    return f"{spread.median:.3f} ({spread.low:.3f}-{spread.high:.3f})"
