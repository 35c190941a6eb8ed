"""What a policy is told of the outputs: sizes, changes and the forecast's error, in the row's one read by the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from baselines.every_k import EveryK
from flowcache.forecast.base import Point
from flowcache.forecast.history import OutputHistory
from flowcache.forecast.hold import Hold
from flowcache.forecast.linear import Linear
from flowcache.reuse.base import Decision, Report
from flowcache.reuse.chunkwise import Chunkwise
from flowcache.reuse.distance import ChunkDistance
from flowcache.sampler import sample
from flowcache.schedule import ChunkStep, Row, Schedule
from tests.methods import method
from tests.models import magi_goldens, skyreels_goldens

FIGURES = ("output", "output_change", "input_change", "forecast_error")
GOLDENS = pytest.mark.parametrize("goldens", [magi_goldens, skyreels_goldens], ids=["magi", "skyreels"])


def test_figures_by_hand():
    history = OutputHistory(Linear(), FIGURES)
    outputs = {0.0: [1.0, -3.0], 0.25: [2.0, 0.0], 0.5: [4.0, 3.0]}
    reports = []
    for index, (t, values) in enumerate(outputs.items()):
        history.update(ChunkStep(7, index, t, 1.0), torch.tensor(values), torch.full((2,), 10 * t))
        chunks, numbers = history.take_report()
        assert chunks == (7,)
        reports.append(numbers[0].tolist())
    assert reports[0][0] == 2.0
    assert all(number != number for number in reports[0][1:])  # NaN: nothing came before
    assert reports[1] == pytest.approx([1.0, 2.0, 2.5, 2.0])  # one point is held: its error is the change
    # The line through the first two meets (3, 3) at 0.5.
    assert reports[2] == pytest.approx([3.5, 2.5, 2.5, 0.5])
    assert history.take_report() is None


@pytest.mark.parametrize(
    ("change", "said"), [(lambda x: x.mean(), r"\[\] in torch.float32"), (Tensor.double, r"\[3\] in torch.float64")]
)
def test_a_forecast_of_another_shape_or_type_is_refused_and_not_spread_over_the_latent(change, said):
    class Changed(Hold):
        def predict(self, t: float, points: Sequence[Point], step: int = 0) -> Tensor:
            return change(points[0].output)

    history = OutputHistory(Changed())
    history.update(ChunkStep(0, 0, 0.0, 0.5), torch.ones(3), torch.empty(0))
    with pytest.raises(ValueError, match=rf"Changed gives {said}; .* \[3\] in torch.float32"):
        history.predict(ChunkStep(0, 1, 0.5, 1.0))


def test_chunks_do_not_mix_and_are_forgotten_when_they_finish():
    history = OutputHistory(Hold())
    for chunk in (0, 1):
        history.update(ChunkStep(chunk, 0, 0.0, 0.5), torch.full((3,), float(chunk)), torch.empty(0))
    assert history.predict(ChunkStep(1, 1, 0.5, 1.0)).tolist() == [1.0] * 3
    assert history.bytes == history.bytes_peak == 2 * 3 * 4
    history.drop(0)
    assert history.bytes == 3 * 4
    with pytest.raises(ValueError, match="chunk 0 is to reuse and has computed nothing yet"):
        history.predict(ChunkStep(0, 1, 0.5, 1.0))
    history.clear()
    assert (history.bytes, history.bytes_peak) == (0, 24)


@dataclass(kw_only=True)
class Reported(Chunkwise):
    """Chunkwise reuse that asks for everything and keeps what it was told."""

    report: ClassVar[tuple[str, ...]] = FIGURES

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen: list[tuple[int, Mapping[int, Report]]] = []
        self.decided: list[tuple[int, ...]] = []

    def observe(self, row: Row, reports: Mapping[int, Report]) -> None:
        self.seen.append((row.index, dict(reports)))

    def decide(self, row: Row, distances: Mapping[int, ChunkDistance], schedule: Schedule) -> Decision:
        decision = super().decide(row, distances, schedule)
        self.decided.append(decision.compute)
        return decision

    def fresh(self) -> Reported:
        return self  # so that the test sees what the sampler's copy was told


@GOLDENS
def test_a_policy_is_told_of_every_computed_chunk_before_the_next_row_is_decided(goldens):
    policy = Reported(threshold=0.3, warmup_steps=2, distance="latent")
    generation = goldens.small_generation(method(policy))
    goldens.latents_of(generation)
    rows = generation.schedule.rows
    computed = [(row.index, chunks) for row, chunks in zip(rows, policy.decided, strict=True) if chunks]
    told = [(row, tuple(reports)) for row, reports in policy.seen]
    assert told == [(row, chunks) for row, chunks in computed if row < rows[-1].index]
    assert any(len(chunks) < len(rows[row].chunks) for row, chunks in told)  # some chunk was skipped
    last: dict[int, int] = {}
    for row, reports in policy.seen:
        for chunk, report in reports.items():
            assert report.output > 0
            again = chunk in last
            assert all((figure == figure) == again for figure in (report.output_change, report.input_change))
            if again:  # it holds: the error is the change
                assert report.forecast_error == pytest.approx(report.output_change)
            last[chunk] = row


@GOLDENS
def test_a_report_changes_no_latent(goldens):
    options = {"threshold": 0.3, "warmup_steps": 2, "distance": "latent"}
    plain, reported = (
        goldens.latents_of(goldens.small_generation(method(kind(**options)))) for kind in (Chunkwise, Reported)
    )
    assert torch.equal(plain, reported)


class HostReads(TorchFunctionMode):
    """Counts what makes the host wait for a device: numbers taken out of tensors, and copies to the CPU."""

    TAKEN = frozenset(
        {
            *(Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__),
            *(Tensor.cpu, Tensor.numpy, Tensor.nonzero, torch.nonzero, Tensor.masked_select, torch.masked_select),
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in self.TAKEN
        return func(*args, **(kwargs or {}))


class DeviceReads(TorchDispatchMode):
    """The same below Python's calls: scalars taken, sizes that depend on values, copies to another device."""

    TAKEN = frozenset(
        {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name() in self.TAKEN
        return func(*args, **(kwargs or {}))


@GOLDENS
@pytest.mark.parametrize(
    ("policy", "most"),
    [
        (EveryK(every=2, warmup_steps=1), 0),
        (Chunkwise(threshold=0.3, warmup_steps=1, distance="latent"), 1),
        (
            Reported(threshold=0.3, warmup_steps=1, distance="latent"),
            2,
        ),  # on a device one: tests/reuse/test_evidence.py
    ],
    ids=["no evidence", "distances", "distances and report"],
)
@pytest.mark.parametrize("forecast", [Hold(), Linear()], ids=["hold", "linear"])
def test_the_host_reads_at_most_once_a_row_and_what_is_there_already(goldens, policy, most, forecast):
    generation = goldens.small_generation(method(policy, budget="1 chunk", forecast=forecast))
    with HostReads() as reads, DeviceReads() as below:
        counts = []

        def observe(row: Row, decision: Decision) -> None:
            counts.append((reads.count, below.count))
            reads.count = below.count = 0

        run = sample(generation, observe=observe)
        list(run)
    assert {count for count, _ in counts} <= {0, 1, most}
    assert {count for _, count in counts} == {0}
    assert sum(count for count, _ in counts) >= min(most, 1) * (len(counts) - 2 * len(generation.schedule.windows))
