"""Forcing-KV: heads sorted, tokens kept and outputs as in the official code's runs (tests/goldens/forcing_kv)."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.forcing_kv import ForcingKv
from flowcache.kv.head_map import HeadMap
from flowcache.kv.heads import HeadCache
from flowcache.kv.policy import KvPolicy
from flowcache.models.wan.attention import rotate
from flowcache.models.wan.rotary import Rotary
from flowcache.sampler import sample
from tests import golden_files
from tests.methods import vanilla
from tests.models import wan_goldens

MANIFEST = golden_files.manifest("forcing_kv/forcing_kv")
FRAMES = 3  # of a chunk


@cache
def tensors() -> dict[str, Tensor]:
    return {name: value.float() for name, value in golden_files.tensors("forcing_kv/forcing_kv").items()}


def sorted_heads(groups: list, num_heads: int) -> HeadMap:
    """A map by which the static heads are those of a golden: all of their attention on the newest frames, or none."""
    static, dynamic = (0.0,) * 8 + (1.0,), (0.0, 1.0) + (0.0,) * 7
    mass = tuple(tuple(static if head in group[0] else dynamic for head in range(num_heads)) for group in groups)
    return HeadMap(name="golden", sha256="0", mass=mass, chunk_frames=FRAMES, provenance={})


def part(facts: dict[str, Any]) -> ForcingKv:
    own = facts["args"]
    return ForcingKv(
        heads=sorted_heads(facts["groups"], facts["heads"]),
        sink_frames=facts["sink_frames"],
        static_frames=own["spatial_context_length"],
        dynamic_frames=own["temporal_context_length"],
        patch_frames=own["dynamic_context_length"],
        patches=own["num_frame_patch"],
        unsplit_chunks=own["ar_start"] + 1,
    )


class OfficialLayer:
    """The golden's self-attention around a cache: projections, norms and rotation of one layer."""

    def __init__(self, case: str, layer: int, rope: Rotary) -> None:
        self._name, self._rope, facts = f"{case}.layer{layer}", rope, MANIFEST[case]
        self._heads = (facts["heads"], facts["head_dim"])

    def linear(self, which: str, x: Tensor) -> Tensor:
        return F.linear(x, tensors()[f"{self._name}.{which}.weight"], tensors()[f"{self._name}.{which}.bias"])

    def project(self, x: Tensor, first: int) -> list[Tensor]:
        """[tokens, D] -> query, key and value [1, H, tokens, E]."""
        made, table = [], self._rope.frames(first, first + FRAMES - 1)
        for which in "qkv":
            y = self.linear(which, x)
            if which != "v":
                y = F.rms_norm(y, y.shape[-1:], tensors()[f"{self._name}.norm_{which}.weight"], eps=1e-6)
            y = y.unflatten(-1, self._heads)[None]
            made.append((y if which == "v" else rotate(y, table)).transpose(1, 2))
        return made


def recorded_tokens(layer: dict[str, Any]) -> dict[int, list[int]]:
    """By head, what the official caches held after a step."""
    if not layer["grouped"]:
        return dict.fromkeys(range(4), layer["sink"] + layer["local"])
    return {
        head: layer[f"{kind}_sink"] + layer.get(f"{kind}_kept", []) + layer[f"{kind}_local"]
        for kind in ("static", "dynamic")
        for head in layer[f"{kind}_heads"]
    }


@pytest.mark.parametrize("case", ["released", "no_dynamic"])
def test_outputs_and_the_tokens_that_every_head_keeps_are_the_official_ones(case):
    facts = MANIFEST[case]
    frames, rows, columns = facts["grid"]
    assert frames == FRAMES
    steps, tokens = facts["steps"], rows * columns
    starts = [FRAMES * chunk for chunk in range(len(steps) + 1)]
    sizes = (facts["layers"], facts["heads"], facts["head_dim"], tokens, tokens)
    cache = HeadCache(*sizes, starts, 1, KvPolicy(select=part(facts)))
    rope = Rotary(facts["head_dim"], starts[-1], rows, columns, "cpu")
    layers = [OfficialLayer(case, layer, rope) for layer in range(facts["layers"])]
    for step, record in enumerate(steps):
        first, last = starts[step], starts[step + 1] - 1
        for kind in ("noisy", "clean"):
            for frame in range(first, last + 1) if kind == "clean" else ():
                cache.finish(frame, is_final=False)
            for index, (layer, held) in enumerate(zip(layers, record["layers"], strict=True)):
                query, key, value = layer.project(tensors()[f"{case}.{kind}"][index, step], first)
                cache.write(index, first, key, value)
                out = cache.attend(index, query, 0, last)
                if kind == "noisy":
                    out = layer.linear("o", out.transpose(1, 2).flatten(2)[0])
                    expected = tensors()[f"{case}.step{step}.noisy_out"][index]
                    torch.testing.assert_close(out, expected, atol=5e-6, rtol=0)
                    lengths = {len(places) for _, places in cache.positions_of(index)}
                    assert lengths == set(held["keys_attended"])
        for index, held in enumerate(record["layers"]):
            cache._take_in(index)
            own = {head: places.tolist() for heads, places in cache.positions_of(index) for head in heads}
            assert own == recorded_tokens(held)
        if "patch_kept" in record:
            (numbers,) = cache._patch_numbers.values()
            assert numbers.tolist() == record["patch_kept"]


@pytest.mark.parametrize("skip", [1, 3])
@pytest.mark.parametrize("case", ["heads", "heads_short"])
def test_heads_are_scored_and_sorted_as_officially(case, skip):
    maps, expected = tensors()[f"{case}.maps"], MANIFEST[case][f"skip{skip}"]
    mass = maps.double().mean(2)
    heads = HeadMap(
        name="golden",
        sha256="0",
        mass=tuple(tuple(map(tuple, layer)) for layer in mass.tolist()),
        chunk_frames=FRAMES,
        provenance={},
    )
    select = ForcingKv(heads=heads, skipped_frames=skip)
    scores = [[select.score(head) for head in layer] for layer in heads.mass]
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected["scores"]), atol=1e-6, rtol=1e-6)
    assert [sorted(static) for static in select._static] == expected["static"]
    for layer, static in enumerate(expected["static"]):
        keeps = select.keep_sets(layer, finished_chunks=9)
        assert [list(keep.heads) for keep in keeps] == (
            [list(range(len(heads.mass[0])))] if layer == 0 else [static, expected["dynamic"][layer]]
        )


@pytest.mark.parametrize("case", ["ring", "ring_long_start"])
def test_newest_frames_are_those_of_the_official_ring(case):
    """What each append leaves, oldest first; an append of nothing has no chunk."""
    facts = MANIFEST[case]
    lengths = [facts["start"], *(size for size in facts["appends"] if size)]
    views = [row["view"] for row, size in zip(facts["rows"], [1, *facts["appends"]], strict=True) if size]
    starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    heads = sorted_heads([[[0], []]], 1)
    select = ForcingKv(heads=heads, sink_frames=0, static_frames=facts["keep"], dynamic_frames=facts["keep"])
    cache = HeadCache(1, 1, 2, 1, 1, starts, 1, KvPolicy(select=select))
    for start, end, view in zip(starts, starts[1:], views, strict=False):
        numbers = torch.arange(start + 1, end + 1.0).expand(1, 1, 2, -1).mT
        cache.write(0, start, numbers, numbers)
        for frame in range(start, end):
            cache.finish(frame)
        cache._take_in(0)
        key, _ = cache._calls[0][0].store.read(0, slice(0, len(view)))
        assert key[0, 0, :, 0].tolist() == view


def test_its_video_is_another_and_takes_less_attention_and_memory():
    heads = sorted_heads([[[0], [1, 2]], [[1, 2], [0]], [[0], [1, 2]]], 3)
    whole, kept = (
        wan_goldens.small_generation(method, num_frames=18)
        for method in (vanilla(), vanilla(select=ForcingKv(heads=heads)))
    )
    videos = [torch.cat([latent for _, latent in sample(each)], dim=1) for each in (whole, kept)]
    torch.testing.assert_close(videos[0][:, :3], videos[1][:, :3], rtol=0, atol=1e-5)  # the first chunk has no past
    assert not torch.allclose(*videos, atol=1e-3)
    assert kept.kv_bytes_allocated < whole.kv_bytes_allocated / 2
    assert kept.kv_compressions == 5


def test_options_that_make_no_sense_are_refused():
    for options, message in (
        ({"threshold": float("nan")}, "threshold=nan must be a finite number"),
        ({"static_frames": -1}, "static_frames=-1 must be a whole number of at least 0"),
        ({"patches": 0}, "patches=0 must be a whole number of at least 1"),
        ({"dynamic_frames": 0}, "patch_frames=1 compares frames that leave .* choose dynamic_frames=1, or patch_fr"),
        ({"heads": 3}, "heads=3 must be the file of a head map, or null"),
        ({"heads": "nowhere.json"}, "heads='nowhere.json' cannot be read as a head map"),
    ):
        with pytest.raises(ValueError, match=message):
            ForcingKv(**options)
