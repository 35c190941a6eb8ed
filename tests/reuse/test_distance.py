"""The relative L1 distance between rows, and what it is measured against."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowcache.reuse.distance import POLYNOMIALS, ChunkDistance, DistanceMeter, rescaling
from flowcache.schedule import diffusion_forcing_schedule, staged_schedule, timesteps
from tests.methods import distances_of


class Script:
    """Features by row and chunk."""

    def __init__(self, rows: list[Mapping[int, Tensor]]) -> None:
        self.rows = iter(rows)
        self.kinds: list[str] = []

    def features(self, kind: str, chunks: tuple[int, ...]) -> Tensor:
        self.kinds.append(kind)
        row = next(self.rows)
        assert tuple(row) == chunks
        return torch.stack([row[chunk] for chunk in chunks])


def random_rows(schedule, shape=(5, 3), dtype=torch.float32) -> list[dict[int, Tensor]]:
    random = torch.Generator().manual_seed(0)
    return [{c: torch.randn(shape, generator=random).to(dtype) for c in row.chunks} for row in schedule.rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measures_each_chunk_against_the_row_before(dtype):
    schedule = staged_schedule(5, timesteps(8))
    rows = random_rows(schedule, dtype=dtype)
    meter = DistanceMeter(Script(rows), "latent")
    for before, row in zip([None, *schedule.rows], schedule.rows, strict=False):
        measured = distances_of(meter, row)
        common = set(row.chunks) & set(before.chunks if before else ())
        assert set(measured) == common
        for chunk in common:
            old, new = rows[before.index][chunk].double(), rows[row.index][chunk].double()
            expected = ((new - old).abs().mean() / old.abs().mean()).item()
            assert measured[chunk].relative == pytest.approx(expected, rel=1e-6)
            assert measured[chunk].magnitude == pytest.approx(old.abs().mean().item(), rel=1e-6)


def test_asks_for_one_kind_once_a_row():
    schedule = staged_schedule(2, timesteps(4))
    script = Script(random_rows(schedule))
    meter = DistanceMeter(script, "embedded_latent")
    for row in schedule.rows:
        distances_of(meter, row)
    assert script.kinds == ["embedded_latent"] * len(schedule.rows)


def test_measures_whatever_chunks_it_is_told_and_nothing_across_windows():
    schedule = diffusion_forcing_schedule(5, [900, 600, 300], 1, window_chunks=3, overlap_chunks=1)
    random = torch.Generator().manual_seed(0)
    rows = [{c: torch.randn(4, generator=random) for c in row.visible} for row in schedule.rows]
    meter = DistanceMeter(Script(rows), "latent", lambda row: tuple(row.visible))
    for row in schedule.rows:
        opens = row.index in [window.rows[0] for window in schedule.windows]
        assert set(distances_of(meter, row)) == (set() if opens else set(row.visible))


def test_a_dry_run_has_no_distances():
    schedule = staged_schedule(1, timesteps(4))
    meter = DistanceMeter(Script([{0: torch.ones(3, device="meta")}] * 4), "latent")
    with pytest.raises(ValueError, match="a dry run on device meta has no 'latent' distances to decide by"):
        meter.measure(schedule.rows[0])


def test_polynomials_are_given_by_name_or_by_coefficients_highest_power_first():
    assert rescaling(None)(0.3) == 0.3
    assert rescaling([2, 0, 1])(3.0) == 19.0
    named = rescaling("skyreels_v2_1.3b_retained")
    assert named(0.0) == pytest.approx(-4.99875664e-2)  # negative, as published
    assert named(0.0214798) == pytest.approx(0.0808901, rel=1e-4)  # goldens/skyreels: own step 5
    assert {len(coefficients) for coefficients in POLYNOMIALS.values()} == {5}
    with pytest.raises(ValueError, match=r"polynomial='magi' is unknown; there are skyreels_v2_1\.3b_retained, "):
        rescaling("magi")


def test_a_chunk_that_did_not_move_is_at_distance_zero():
    schedule = staged_schedule(1, timesteps(4))
    meter = DistanceMeter(Script([{0: torch.ones(3)}] * 4), "latent")
    assert [distances_of(meter, row) for row in schedule.rows] == [{}] + [{0: ChunkDistance(0.0, 1.0)}] * 3


def test_nothing_before_is_no_division_by_zero():
    assert ChunkDistance(0.0, 0.0).relative == 0.0
    assert ChunkDistance(1.0, 0.0).relative == pytest.approx(1e8)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(1e-2, 1e2))
def test_the_distance_does_not_depend_on_the_scale(change, magnitude, scale):
    scaled = ChunkDistance(change * scale, magnitude * scale).relative
    assert scaled == pytest.approx(ChunkDistance(change, magnitude).relative, rel=2e-3)
