"""What every part of a kind promises, whatever it does: held of all that conf/ has files of."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import fields, replace

import pytest
import torch
from omegaconf import open_dict

from experiments.job.compose import composed
from experiments.job.errors import BadInput
from experiments.job.method import make_method
from flowcache.forecast.base import Forecast, Point
from flowcache.kv.select.base import Entries, KeySelector
from flowcache.kv.store.base import KvStore, StoreShape
from flowcache.models.wan.rotary import rotary_pairs
from flowcache.reuse.base import Decision, Report, ReusePolicy
from flowcache.reuse.distance import ChunkDistance
from flowcache.schedule import (
    Row,
    Schedule,
    diffusion_forcing_schedule,
    sequential_schedule,
    staged_schedule,
    timesteps,
)
from tests.experiments.conf_parts import CHOICES, UNBOUNDED, part

SCHEDULES = {
    "staged": staged_schedule(6, timesteps(8)),
    "windows": diffusion_forcing_schedule(9, range(900, 0, -100), ar_step=2, window_chunks=5, overlap_chunks=2),
    "few steps": sequential_schedule(4, (1000.0, 937.5, 833.3, 625.0)),
}
HEADS, GROUPS, FRAME, CHUNK, CHUNKS, CHANNELS = 4, 2, 4, 12, 3, 8


def decisions(policy: ReusePolicy, schedule: Schedule, waiting_measured: bool = False) -> list[Decision]:
    """As the sampler asks for them, with the same numbers every time; attention without a cache measures a window's
    waiting chunks too."""
    numbers, made = random.Random(0), []
    before: Row | None = None
    for row in schedule.rows:
        known = () if before is None or before.window != row.window else before.chunks
        distances: Mapping[int, ChunkDistance] = {
            chunk: ChunkDistance(numbers.uniform(0, 0.2), 1.0, numbers.uniform(0.9, 1.0))
            for chunk in row.chunks
            if chunk in known or (known and waiting_measured)
        }
        if made and policy.report and made[-1].compute:
            computed = {chunk: Report(*(numbers.uniform(0.1, 1) for _ in range(4))) for chunk in made[-1].compute}
            policy.observe(before, computed)
        made.append(policy.decide(row, distances, schedule))
        before = row
    return made


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", CHOICES["reuse"])
def test_a_policy_decides_about_active_chunks_and_computes_each_ones_first_step(name, schedule):
    policy = part("reuse", name).reuse.fresh()
    policy.check_schedule(schedule)
    for row, decision in zip(schedule.rows, decisions(policy, schedule), strict=True):
        assert decision.compute == tuple(chunk for chunk in row.chunks if chunk in decision.compute)
        if not policy.needs_window:
            assert {step.chunk for step in row.steps if step.step == 0} <= set(decision.compute)
        if not policy.skips:
            assert decision.compute == row.chunks
        for more in fields(Decision):
            assert more.name in ("compute", *policy.uses) or not getattr(decision, more.name)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", CHOICES["reuse"])
def test_a_policy_that_says_so_computes_whole_rows_or_nothing_of_them(name, schedule):
    policy = part("reuse", name).reuse.fresh()
    computed = decisions(policy, schedule, waiting_measured=True)
    whole = all(decision.compute in ((), row.chunks) for row, decision in zip(schedule.rows, computed, strict=True))
    assert whole or not policy.whole_rows(schedule)


@pytest.mark.parametrize("name", CHOICES["reuse"])
def test_nothing_that_a_policy_remembers_survives_into_the_next_video(name):
    policy = part("reuse", name).reuse
    first = policy.fresh()
    expected = decisions(first, SCHEDULES["windows"])
    assert decisions(first.fresh(), SCHEDULES["windows"]) == expected
    assert policy.fresh() == policy


@pytest.mark.parametrize("times", [(0.1, 0.2, 0.3, 0.4, 0.5), (999.0, 900.0, 700.0, 400.0, 300.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CHOICES["forecast"])
def test_a_forecast_is_of_the_outputs_shape_and_type_and_leaves_them_alone(name, dtype, times):
    forecast: Forecast = part("forecast", name).forecast.fresh()
    draw = torch.Generator().manual_seed(0)
    for known in range(1, forecast.depth + 1):
        points = [Point(t, torch.randn(1, 3, 4, generator=draw).to(dtype)) for t in times[:known][::-1]]
        before = [point.output.clone() for point in points]
        ahead = forecast.predict(times[known] if known < len(times) else times[-1], points)
        assert (ahead.shape, ahead.dtype) == ((1, 3, 4), dtype)
        assert ahead.isfinite().all()
        assert all(torch.equal(point.output, kept) for point, kept in zip(points, before, strict=True))
        same_time = [Point(times[0], point.output) for point in points]  # two steps of one time on a rounded grid
        assert forecast.predict(times[1], same_time).isfinite().all()


def entries(device: str, select: KeySelector) -> Entries:
    draw, length = torch.Generator().manual_seed(0), CHUNK * CHUNKS
    key, value = torch.randn(2, 1, GROUPS, length, CHANNELS, generator=draw).to(device)
    query = torch.randn(1, HEADS, CHUNK, CHANNELS, generator=draw).to(device)
    position = torch.arange(length, dtype=torch.int32).expand(1, GROUPS, -1).to(device)
    bias = torch.zeros(1, GROUPS, length, device=device) if select.biases else None
    query = select.queries(query, FRAME)
    stands = CHUNKS * CHUNK + torch.arange(query.shape[-2], device=device)
    given = Entries(
        query,
        key,
        value,
        position,
        bias,
        0,
        FRAME,
        CHUNK,
        query_position=stands,
        rotary=rotary_pairs(CHANNELS, 2, FRAME // 2, device),
    )
    select.allocate(StoreShape(1, 1, GROUPS, length, CHANNELS, torch.float32, device))
    return replace(given, observed=select.observe(given)) if select.observes else given


@pytest.mark.parametrize("device", ["cpu", "meta"])  # "meta" has no numbers: whoever waits for some fails
@pytest.mark.parametrize("name", sorted(set(CHOICES["kv"]) - UNBOUNDED))
def test_a_selector_keeps_as_many_keys_as_it_may_each_once_and_never_waits_for_numbers(name, device):
    select = part("kv", name).kv.select.fresh()
    unit, least = select.unit_tokens(FRAME, CHUNK), select.least_tokens(FRAME, CHUNK)
    num_queries = select.num_queries(FRAME, CHUNK)
    assert 0 <= num_queries <= CHUNK
    assert select.queries(torch.zeros(1, HEADS, CHUNK, CHANNELS), FRAME).shape[-2] == num_queries
    assert select.flops(HEADS, GROUPS, CHANNELS, CHUNK, CHUNK * CHUNKS) >= 0
    for budget in {max(least, 2 * CHUNK), -(-least // unit) * unit}:
        given = entries(device, select)
        before = (given.query.clone(), given.key.clone(), given.value.clone())
        chosen = select.select(given, budget)
        assert (chosen.indices.shape, chosen.indices.dtype) == ((1, GROUPS, budget), torch.int64)
        assert (chosen.unusable.shape, chosen.unusable.dtype) == ((1, GROUPS), torch.int64)
        assert select.biases or chosen.bias is None
        assert chosen.bias is None or (chosen.bias.shape, chosen.bias.dtype) == ((1, GROUPS, budget), torch.float32)
        if device == "cpu":
            assert 0 <= chosen.indices.min() <= chosen.indices.max() < CHUNK * CHUNKS
            assert all(len(set(head)) == budget for head in chosen.indices[0].tolist())
            assert not chosen.unusable.any()
            now = (given.query, given.key, given.value)
            assert all(torch.equal(tensor, kept) for tensor, kept in zip(now, before, strict=True))


def stored(name: str, dtype: torch.dtype) -> tuple[KvStore, torch.Tensor]:
    """A store of two layers and six slots, the first three of them settled, and what was written into it: keys and
    values, [2, 2, 1, G, 6, E]."""
    store = part("kv/store", name).kv.store.fresh()
    store.allocate(StoreShape(2, 1, GROUPS, 6, CHANNELS, dtype, "cpu", block=3))
    written = torch.randn(2, 2, 1, GROUPS, 6, CHANNELS, generator=torch.Generator().manual_seed(0)).to(dtype)
    for layer in range(2):
        for slots in (slice(0, 3), slice(3, 6)):
            store.write(layer, slots, *written[:, layer, ..., slots, :])
        store.settle(layer, slice(0, 3))
    return store, written


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CHOICES["kv/store"])
def test_a_store_gives_back_what_was_written_as_precisely_as_it_says(name, dtype):
    store, written = stored(name, dtype)
    allocated = store.nbytes
    for layer in range(2):
        read = torch.stack(store.read(layer, slice(1, 5)))
        assert (read.dtype, read.shape) == (dtype, written[:, layer, ..., 1:5, :].shape)
        off = (read - written[:, layer, ..., 1:5, :]).float()
        assert not off.any() if store.lossless else off.norm() < 0.6 * read.float().norm()
        assert not store.settles or not off[..., 2:, :].any()  # slots 3 and 4 are not settled
    store.keep(0, torch.tensor([[[0, 2], [1, 2]]]), length=3, held=6)
    slots = [[0, 2, 3, 4, 5], [1, 2, 3, 4, 5]]
    kept = torch.stack([written[:, 0, 0, head, slots[head]] for head in range(GROUPS)], dim=1)
    off = (torch.stack(store.read(0, slice(0, 5)))[:, 0] - kept).float()
    assert not off.any() if store.lossless else off.norm() < 0.6 * kept.float().norm()
    assert store.nbytes == allocated > 0


@pytest.mark.parametrize("name", CHOICES["kv/store"])
def test_slots_that_were_never_written_are_finite(name):
    store = part("kv/store", name).kv.store.fresh()
    store.allocate(StoreShape(1, 1, GROUPS, 6, CHANNELS, torch.float32, "cpu"))
    assert all(tensor.isfinite().all() for tensor in store.read(0, slice(0, 6)))


@pytest.mark.parametrize(
    ("group", "key", "message"),
    [
        ("forecast", "name", r"forecast gives no name; add it to the part's file in conf/forecast"),
        ("reuse", "_target_", r"reuse chunkwise gives no _target_; add it to the part's file in conf/reuse"),
        ("kv", "budget", r"kv joint gives no budget; add it to the part's file in conf/kv "),
        ("kv.store", "name", r"kv.store gives no name; add it to the part's file in conf/kv/store"),
    ],
)
def test_what_a_parts_file_must_give_is_asked_for_in_one_message(group, key, message):
    config = composed([])
    node = config.kv.store if group == "kv.store" else config[group]
    with open_dict(node):
        del node[key]
    with pytest.raises(BadInput, match=message):
        make_method(config)


def test_a_forecast_without_depth_and_a_store_that_does_not_say_how_precise_are_refused():
    class Unsaid(Forecast):
        def predict(self, t, points, step=0):
            return points[0].output

    class Silent(KvStore):
        allocate = write = read = keep = copy = sizes = bits_a_number = None

    with pytest.raises(TypeError, match="Unsaid must say by its depth how many computed outputs it looks back on"):
        Unsaid()
    with pytest.raises(TypeError, match="Silent must say by lossless whether it gives back what was written"):
        Silent()
