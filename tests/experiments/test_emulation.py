"""Whole videos on the emulated device, at the paper's size: what a row must not do on a GPU, and that it would show.

Networks have two of their layers, which are alike. MAGI-1 takes 8 of its 64 steps a chunk, and SkyReels-V2 6 of its 50
in 117 of its 177 frames, two windows; else minutes would pass. Tokens a chunk and chunks attended are the paper's.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from experiments.benchmarks.emulation.device import EmulatedCuda
from experiments.benchmarks.emulation.operators import OperatorLog, Place, with_layers
from experiments.benchmarks.emulation.video import Emulated, emulate
from experiments.benchmarks.gpu.subject import Subject
from experiments.job.method import make_method
from flowcache.models.magi.generation import MagiGeneration

SHORT = {
    "magi": ("setting.num_steps=8",),
    "skyreels": ("setting.num_steps=6", "setting.num_frames=117"),
    "wan": (),
}
# Most launches of a row of two layers, compression aside; MAGI-1's fullest has five members, SkyReels-V2 two branches.
MOST_LAUNCHES = {"magi": 330, "skyreels": 460, "wan": 280}
# What a row may copy to the device: the places in the time table of a window that begins.
COPIES = {"skyreels": ("flowcache/models/skyreels/window.py",)}
BUDGET = "kv.budget=1 chunk"
RUNS = [
    *(("magi", *method) for method in (["vanilla"], ["flowcache_fast"], ["flowcast_fast"], ["flowcache_fast", BUDGET])),
    *(
        ("skyreels", *method)
        for method in (["vanilla"], ["vanilla_kv"], ["flowcache_fast"], ["flowcache_fast", BUDGET])
    ),
    *(("wan", *method) for method in (["vanilla"], ["flowcast_fast"])),
]


def little_moved(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Distances of half a threshold, so that chunks compute in some rows and skip others; all that is tested holds."""
    if not dtype.is_floating_point or not shape:
        return torch.ones(shape, dtype=dtype) if dtype == torch.bool else torch.zeros(shape, dtype=dtype)
    return torch.tensor([0.006, 1.0], dtype=dtype).repeat(shape.numel() // 2).reshape(shape)


def run(model: str, method: str, *overrides: str, num_layers: int = 2, decodes: bool = False) -> Emulated:
    subject = Subject((f"model={model}", "setting=paper", *SHORT[model], "device=cuda:0"))
    policy = make_method(subject.config(f"method={method}", *overrides))
    return emulate(subject.job(), policy, num_layers, little_moved, decodes)


def check_rows(log: OperatorLog, model: str) -> None:
    """Raises AssertionError for what costs a GPU time that is not the row's own."""
    reads = log.in_rows("read by the host")
    assert all(read.line.startswith("flowcache/reuse/evidence.py") for read in reads), reads
    by_row = Counter(read.place.row for read in reads)
    assert max(by_row.values(), default=0) <= 1, "a row is read more than once"
    copies = log.in_rows("copy to the device")
    assert all(copy.line.startswith(COPIES.get(model, "-")) for copy in copies), copies
    assert not log.in_rows("float64"), log.in_rows("float64")
    assert max(log.launches_by_row().values()) <= MOST_LAUNCHES[model]


@pytest.mark.parametrize("asked", RUNS, ids=" ".join)
def test_rows_wait_for_nothing_and_copy_nothing(asked):
    made = run(*asked)
    check_rows(made.log, asked[0])
    assert len(made.log.launches_by_row()) == made.num_rows
    elementwise = made.log.totals(lambda place, operator: operator.kind == "elementwise" and place.section != "vae")
    print(f"{' '.join(asked)}: {elementwise.num_bytes / 1e12:.2f} TB in {elementwise.launches} elementwise launches")
    assert elementwise.num_bytes > 0
    compresses = any(place.section == "compression" for place, _ in made.log.operators)
    assert compresses == (BUDGET in asked)


@pytest.mark.parametrize("asked", [("magi", "flowcache_fast", BUDGET), ("skyreels", "vanilla_kv"), ("wan", "vanilla")])
def test_it_counts_the_operations_that_the_trace_counts(asked):
    """Matrix products and attention of every row; MAGI-1's patches go through a convolution, and count as products."""
    made = run(*asked)
    ran: Counter[int] = Counter()
    for (place, operator), count in made.log.operators.items():
        if place.section in ("transformer", "compression") and place.row >= 0:
            ran[place.row] += count * operator.flops
    counted: Counter[int] = Counter()
    for row, work in made.trace.work:
        counted[row] += work.flops if row >= 0 else 0
    assert ran == +counted


def test_layers_are_alike():
    """What one and two layers do tells what three do."""
    one, two, three = (run("wan", "vanilla", num_layers=layers).log for layers in (1, 2, 3))
    told = with_layers((one, two), 3)
    assert told.totals() == three.totals()
    assert told.launches_by_row() == three.launches_by_row()
    for row in three.launches_by_row():
        assert told.totals(lambda place, _, row=row: place.row == row) == three.totals(
            lambda place, _, row=row: place.row == row
        )


def test_decoding_is_of_its_own_section():
    made = run("wan", "vanilla", num_layers=1, decodes=True)
    decoding = made.log.totals(lambda place, operator: place.section == "vae" and operator.kind == "convolution")
    assert decoding.flops > 1e14
    assert made.peak_bytes > sum(made.weights_bytes.values()) + made.trace.kv_bytes_allocated


INJECTED = {
    "item": (lambda latents: latents.sum().item(), AssertionError, "read by the host"),
    "a test of a tensor": (lambda latents: bool(latents.sum() > 0), AssertionError, "read by the host"),
    "an index of the host": (lambda latents: latents[:, torch.tensor([0, 1])], AssertionError, "copy to the device"),
    "a number of the host": (
        lambda latents: torch.tensor([1.0], device=latents.device),
        AssertionError,
        "copy to the device",
    ),
    "float64": (lambda latents: latents.double(), AssertionError, "float64"),
    "a tensor of the host": (lambda latents: latents + torch.ones(latents.shape), RuntimeError, "same device"),
}


@pytest.mark.parametrize("name", INJECTED)
def test_what_would_slow_a_row_down_fails(name, monkeypatch):
    """Put into the loop, one of these at a time: the same check that passes without it."""
    slow, error, message = INJECTED[name]
    advance = MagiGeneration.advance

    def slower(generation, row, decision):
        slow(generation.latents)
        advance(generation, row, decision)

    monkeypatch.setattr(MagiGeneration, "advance", slower)
    with pytest.raises(error, match=message):
        check_rows(run("magi", "vanilla", num_layers=1).log, "magi")


def test_numbers_on_the_host_are_real_and_those_on_the_device_are_read():
    with (
        EmulatedCuda(lambda shape, dtype: torch.full(shape, 3, dtype=dtype)).running() as device,
        torch.inference_mode(),
    ):
        on_host = torch.arange(4)
        on_device = on_host.to("cuda:0")
        assert on_host.tolist() == [0, 1, 2, 3]
        assert on_device.tolist() == [3, 3, 3, 3]
        assert on_device.sum().item() == 3
        taken = on_device[1:, None][..., 0]
        assert (taken.shape, taken.device) == ((3,), on_device.device)
        on_device[2:] = 0
    assert not isinstance(on_host, torch._subclasses.FakeTensor)
    events = Counter(incident.event for incident in device.log.incidents.elements())
    assert events == {"read by the host": 2, "copy to the device": 1}
    assert type(torch.zeros(1)) is torch.Tensor


def test_views_cost_nothing_and_broadcasts_count_once():
    with EmulatedCuda().running() as device, torch.inference_mode():
        x = torch.empty(8, 4, device="cuda:0")
        x.unflatten(0, (2, 4)).transpose(1, 2)
        x[:1].expand(8, 4) + x
    ((place, operator),) = device.log.operators
    assert place == Place("", -1)
    assert (operator.name, operator.num_bytes) == ("add", 4 * (4 + 32 + 32))
