"""Dummy Forcing: which heads are dummies, and what each kind keeps, by hand."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from baselines.dummy_forcing import DummyForcing
from flowcache.kv.head_map import HeadMap
from tests.methods import vanilla
from tests.models import wan_goldens

# Of the first frame, two between, and a chunk of three, by layer and head.
MASS = (
    ((0.50, 0.05, 0.05, 0.1, 0.1, 0.2), (0.02, 0.01, 0.01, 0.3, 0.3, 0.36), (0.10, 0.40, 0.30, 0.1, 0.1, 0.0)),
    ((0.01, 0.02, 0.02, 0.3, 0.3, 0.35), (0.30, 0.10, 0.10, 0.2, 0.2, 0.1), (0.05, 0.05, 0.05, 0.3, 0.3, 0.25)),
)
HEADS = HeadMap(name="made", sha256="0", mass=MASS, chunk_frames=3, provenance={})
NETWORKS = replace(HEADS, mass=(*MASS, MASS[0]))  # of the golden network's layers


def kinds(select: DummyForcing) -> list[list[list[int]]]:
    """First, dummy and between heads, by layer."""
    return [[list(keep.heads) for keep in select.keep_sets(layer, 5)] for layer in range(2)]


def test_heads_that_look_back_least_are_dummies_over_all_layers():
    """Parts of all first and all between (sums 0.98 and 1.16): the larger one is .51 .02 .60 / .03 .31 .09."""
    assert kinds(DummyForcing(heads=HEADS)) == [[[0], [1], [2]], [[1], [0, 2], []]]
    assert kinds(DummyForcing(heads=HEADS, dummy_share=1 / 3)) == [[[0], [1], [2]], [[1], [0], [2]]]
    assert kinds(DummyForcing(heads=HEADS, dummy_share=0)) == [[[0, 1], [], [2]], [[1], [], [0, 2]]]
    assert kinds(DummyForcing(heads=HEADS, dummy_share=1)) == [[[], [0, 1, 2], []]] * 2


def test_each_kind_keeps_its_own_frames_in_at_most_two_calls():
    select = DummyForcing(heads=NETWORKS)
    generation = wan_goldens.small_generation(vanilla(select=select), num_frames=15)
    assert wan_goldens.latents_of(generation).isfinite().all()
    (cache,) = generation.caches
    for layer, kept in enumerate(select.keep_sets(layer, 4) for layer in range(3)):
        first, dummy, between = (keep.heads for keep in kept)
        held = cache.positions_of(layer)
        frames = {heads: sorted({place // 4 for place in places.tolist()}) for heads, places in held}
        own = [12, 13, 14]
        expected = {first: [0, *own], dummy: [11, *own], between: [9, 10, 11, *own]}
        assert frames == {heads: kept_ones for heads, kept_ones in expected.items() if heads}
        assert len(cache._calls[layer]) == 1 + bool(between)


def test_a_dummys_share_of_the_compute_is_its_share_of_the_keys():
    """Beside a chunk of three frames one, or three."""
    generation = wan_goldens.small_generation(vanilla(select=DummyForcing(heads=NETWORKS)), num_frames=15)
    wan_goldens.latents_of(generation)
    between = sum(len(DummyForcing(heads=NETWORKS).keep_sets(layer, 4)[2].heads) for layer in range(3))
    assert 0 < between < 9
    assert generation.caches[0].num_keys(0, 14) == Fraction(between * 3 + (9 - between), 9) * 4 + 3 * 4


def test_options_that_make_no_sense_are_refused():
    for options, message in (
        ({"dummy_share": 1.5}, "dummy_share=1.5 must be a number from 0 to 1"),
        ({"recent_frames": -1}, "recent_frames=-1 must be a whole number of at least 0"),
        ({"first_frames": 0}, "first_frames=0 must be a whole number of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            DummyForcing(**options)
