"""Whole causal Wan runs against the official code's (goldens/wan: sampling): latents, forwards, key frames, caches.

The official code encodes every finished chunk in a forward of its own, the last one's too, and where chunks roll, the
first chunk of every row, finished or not. Here a finished chunk is encoded in the forward of the next row that
computes, the first of its members, and nothing is encoded that no later chunk reads. So, in order, our members are the
official forwards without those; all others must be there, each seeing as many key frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import Tensor

from flowcache.models.wan.generation import WanGeneration
from flowcache.models.wan.network import WanNetwork
from flowcache.sampler import sample
from flowcache.trace import Trace
from tests.methods import vanilla
from tests.models.wan_goldens import TOKENS, golden_generation, latents, manifest, tensors

GOLDEN, VARIANTS = tensors("sampling"), manifest("sampling")["variants"]
TOLERANCE, CACHE_TOLERANCE = 5e-5, 2e-5
ROLLING = [variant for variant in VARIANTS if variant.startswith("rf_")]


@dataclass
class Run:
    """A finished run: its forwards, each as members, and the latents before and estimates after every row."""

    generation: WanGeneration
    trace: Trace = field(default_factory=Trace)
    forwards: list[list[dict[str, Any]]] = field(default_factory=list)
    given: list[Tensor] = field(default_factory=list)
    clean: list[Tensor] = field(default_factory=list)


@cache
def finished(variant: str) -> Run:
    generation = golden_generation(variant, vanilla())
    run = Run(generation)
    passes, advance = WanGeneration._passes, WanGeneration.advance

    def recorded(branch, row, computed):
        found = passes(generation, branch, row, computed)
        run.given.append(
            torch.cat([generation.latents[:, :, p.first : p.end] for p in found if p.kind == "denoise"], 2)
        )
        keys = [branch.cache.num_keys(*generation._member(p).keys) for p in found]
        run.forwards.append(
            [
                {
                    "kind": p.kind,
                    "first_frame": p.first,
                    "frames": p.end - p.first,
                    "time": p.time,
                    "keys": num / TOKENS,
                }
                for p, num in zip(found, keys, strict=True)
            ]
        )
        return found

    def advanced(row, decision):
        run.clean.append(torch.cat([generation.output(chunk) for chunk in row.chunks], dim=2))
        return advance(generation, row, decision)

    generation._passes, generation.advance = recorded, advanced
    for _ in sample(generation, run.trace):
        pass
    return run


def members(forwards: list[list[dict[str, Any]]], rolling: bool) -> list[tuple[int, int, tuple[float, ...], float]]:
    """First frame, frames, times of blocks and key frames of each; chunks that roll together are one."""
    found = []
    for forward in forwards:
        for joint, group in groupby(forward, lambda member: rolling and member["kind"] == "denoise"):
            own = list(group)
            for together in [own] if joint else [[each] for each in own]:
                times = tuple(each["time"] for each in together)
                frames = sum(each["frames"] for each in together)
                found.append((together[0]["first_frame"], frames, times, together[0]["keys"]))
    return found


def official(variant: str) -> list[tuple[int, int, tuple[float, ...], float]]:
    """The official forwards without those that encode what is not finished, or what nobody reads."""
    run = VARIANTS[variant]
    forwards = [
        (f["first_frame"], f["frames"], tuple(f.get("timesteps_per_block") or [f["timestep"]]), f["key_frames"])
        for f in run["forwards"]
    ]
    switches = [i for i, f in enumerate(forwards) if f[1] > run["block"] and variant not in ROLLING]
    # The forward before a change of prompt encoded a chunk with the old one, which is overwritten.
    wasted = {len(forwards) - 1} | {i - 1 for i in switches}
    if variant in ROLLING:
        wasted |= set(range(1, 2 * len(run["steps"]) - 2, 2))
    return [forward for i, forward in enumerate(forwards) if i not in wasted]


@pytest.mark.parametrize("variant", VARIANTS)
def test_latents_are_the_official_ones(variant):
    out = latents(finished(variant).generation.latents)
    torch.testing.assert_close(out, GOLDEN[f"{variant}.final"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_forwards_and_their_key_frames_are_the_official_ones_but_for_those_that_nobody_needs(variant):
    assert members(finished(variant).forwards, variant in ROLLING) == official(variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_block_takes_a_forward_a_step(variant):
    """Whatever is encoded rides along: given chunks, finished ones, and those before a change of prompt."""
    run = finished(variant)
    assert len(run.forwards) == len(run.generation.schedule.rows)


@pytest.mark.parametrize("step", range(4))
def test_estimates_of_every_step_are_the_official_ones(step):
    clean = torch.cat(finished("base").clean[step::4], dim=2)
    torch.testing.assert_close(latents(clean), GOLDEN[f"base.x0.step{step}"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("forward", [0, 4, 8, 10, 12, 16, 20])
def test_rows_that_roll_are_the_official_ones(forward):
    """Every other official forward is of a row."""
    run, name = finished("rf_21"), f"rf_21.forward{forward}"
    torch.testing.assert_close(latents(run.given[forward // 2]), GOLDEN[f"{name}.in"], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(latents(run.clean[forward // 2]), GOLDEN[f"{name}.x0"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("variant", ["base", "ll_switch_late", "rf_36"])
@pytest.mark.parametrize("layer", [0, 2])
def test_the_cache_holds_the_official_keys_and_values(variant, layer):
    """But for the last chunk, which nobody reads and we do not encode: ours are those of its last step. The official
    cache of rolling chunks keeps its sink unrotated."""
    run = finished(variant).generation
    cache, last = run.caches[0], run.blocks.start(run.blocks.num_chunks - 1)
    frames, held = cache.frames_held, cache._store.read(layer, slice(0, cache.num_tokens))
    for which, own in zip("kv", held, strict=True):
        theirs = GOLDEN[f"{variant}.cache.layer{layer}.{which}"].transpose(1, 2).unflatten(2, (-1, TOKENS))
        own = own.unflatten(2, (-1, TOKENS))
        # Theirs are by age: the sink, and the newest.
        count, end = theirs.shape[2], run.blocks.num_frames
        sink = run.sampling.sink_frames
        ages = [*range(sink), *range(end - count + sink, end)]
        compared = [f for f in ages if f < last and not (variant in ROLLING and which == "k" and f < sink)]
        assert len(compared) >= count - 6
        ours = torch.stack([own[:, :, frames.index(f)] for f in compared], dim=2)
        expected = torch.stack([theirs[:, :, ages.index(f)] for f in compared], dim=2)
        torch.testing.assert_close(ours, expected, atol=CACHE_TOLERANCE, rtol=0)


@pytest.mark.parametrize("variant", ["base", "window6"])
def test_another_prompt_on_the_same_network_is_as_alone(variant):
    generation = golden_generation(variant, vanilla(), prompts=("context2",))
    for _ in sample(generation):
        pass
    expected = GOLDEN[f"{variant}.final_second_prompt"]
    torch.testing.assert_close(latents(generation.latents), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("a", [variant for variant in VARIANTS if variant not in ROLLING])
def test_runs_differ_by_what_their_settings_say(a):
    """So that agreeing with all means something."""
    for b in VARIANTS:
        frames = min(GOLDEN[f"{variant}.final"].shape[1] for variant in (a, b))
        if a != b and b not in ROLLING:
            assert (GOLDEN[f"{a}.final"][:, :frames] - GOLDEN[f"{b}.final"][:, :frames]).abs().max() > 0.1


def test_text_keys_are_encoded_once_a_prompt(monkeypatch):
    calls, caption = [], WanNetwork.caption
    monkeypatch.setattr(WanNetwork, "caption", lambda self, text: calls.append(1) or caption(self, text))
    for _ in sample(golden_generation("ll_switch_twice", vanilla())):
        pass
    assert len(calls) == 3
