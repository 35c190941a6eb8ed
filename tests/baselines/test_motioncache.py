"""MotionCache against its released code, and what it promises by itself. Computing a chunk in part, by the model:
tests/models/test_chunk_tokens.py; what motion is: tests/reuse/test_motion.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.motioncache import MotionCache
from flowcache.forecast.hold import Hold
from flowcache.kv.cache import KvCache
from flowcache.kv.select.joint import Joint
from flowcache.models.magi.generation import MagiGeneration
from flowcache.reuse.base import Decision, Report
from flowcache.reuse.distance import ChunkDistance
from flowcache.reuse.never import Never
from flowcache.sampler import IdlePart, sample
from flowcache.schedule import Row, sequential_schedule
from flowcache.trace import Trace
from tests.golden_files import manifest, tensors
from tests.methods import method
from tests.models import magi_goldens, skyreels_goldens, wan_goldens

LATENTS, SUMS, WEIGHTS = 5e-5, 1e-5, 5e-5  # tolerances


class Recorded(MotionCache):
    """Says, for every row, what tokens have added up, and what they weighed."""

    log: list[tuple[Row, dict[int, Tensor], dict[int, Tensor]]]

    def fresh(self):
        copy = super().fresh()
        copy.log = self.log
        return copy

    def _decide_tokens(self, steps, distances, row, schedule):
        chunks = [step.chunk for step in steps]
        motion = torch.stack([self._motion[chunk] for chunk in chunks])
        weights = self._weights(motion, chunks[0] == schedule.windows[row.window].first_chunk)
        super()._decide_tokens(steps, distances, row, schedule)
        self.log.append((row, {c: self._sums[c].clone() for c in chunks}, dict(zip(chunks, weights, strict=True))))


def recorded(**options: Any) -> Recorded:
    policy = Recorded(**options)
    policy.log = []
    return policy


def magi_case(variant: str) -> tuple[MagiGeneration, Recorded]:
    case, given = manifest("motioncache/magi")["variants"][variant], magi_goldens.tensors("g_inputs_5chunks")
    own, runtime = case["settings"], case["runtime"]
    policy = recorded(
        threshold=own["threshold"],
        token_threshold=own.get("token_threshold"),
        warmup_steps=own["warmup_steps"],
        chunk_phase=own["chunk_only_steps"],
        token_distances=own.get("l1_mode") == "token",
        floor=own["floor"],
        power=own["power"],
        first_frame="one",
        weighs_once=own.get("weights_once", False),
        vote=4 / 6 if own.get("voting") else None,
        vote_adds=own.get("voting", False),
        most_reused=(own["ratio_from"], own["ratio_to"]) if "ratio_from" in own else None,
        last_step="stale",
        published=not own["kv_range_repaired"],
    )
    settings = replace(
        magi_goldens.golden_runtime("g_flowcache_mlp"),
        num_steps=runtime["num_steps"],
        window_size=runtime["window_size"],
        noise2clean_kvrange=tuple(runtime["noise2clean_kvrange"]),
        near_clean_threshold=case["engine"]["distill_nearly_clean_chunk_threshold"],
    )
    dit = magi_goldens.golden_dit("mlp_base")
    caption = magi_goldens.packed_caption(dit, given["in.caption_embs"][0], given["in.emb_masks"])
    released = method(policy, forecast=Hold(quantity="displacement"), refresh_clean_kv=False)
    null = magi_goldens.null_caption(dit)
    return MagiGeneration(dit, settings, released, [caption] * 5, null, given["in.noise"][:1]), policy


@pytest.mark.parametrize("variant", manifest("motioncache/magi")["variants"])
def test_masks_sums_and_latents_are_the_released_codes_on_magi(variant):
    generation, policy = magi_case(variant)
    golden, rows = tensors("motioncache/magi"), len(generation.schedule.rows)
    masks = torch.full((rows, 5, magi_goldens.TOKENS_PER_CHUNK), 2, dtype=torch.uint8)

    def record(row: Row, decision: Decision) -> None:
        for chunk in row.chunks:
            own = decision.mask(0, chunk)
            masks[row.index, chunk] = chunk in decision.compute if own is None else own

    trace = Trace()
    list(sample(generation, trace, observe=record))
    assert torch.equal(masks, golden[f"{variant}.computed"])
    torch.testing.assert_close(generation.latents, golden[f"{variant}.final"], rtol=0, atol=LATENTS)
    assert trace.computed_fraction == pytest.approx(manifest("motioncache/magi")["variants"][variant]["computed_share"])
    assert policy.log
    for row, sums, weights in policy.log:
        for chunk, own in sums.items():
            torch.testing.assert_close(own[0], golden[f"{variant}.token_acc"][row.index, chunk], rtol=0, atol=SUMS)
            if variant == "sparse":
                known = golden["sparse.weights_before"][row.index, 6 * chunk : 6 * chunk + 6]
                torch.testing.assert_close(weights[chunk][0], known, rtol=0, atol=WEIGHTS)


@pytest.mark.parametrize("variant", manifest("motioncache/skyreels")["variants"])
def test_masks_sums_and_latents_are_the_released_codes_on_skyreels(variant):
    case, golden = manifest("motioncache/skyreels")["variants"][variant], tensors("motioncache/skyreels")
    own = case["settings"]
    policy = recorded(
        threshold=own["threshold"],
        warmup_steps=own["warmup_steps"] + 1,
        chunk_phase=own["phase1_updates"],
        chunk_phase_counts="updates",
        distance="rescaled_modulation",
        polynomial="skyreels_v2_1.3b_retained",
        motion="block_output",
        scale={"max_rescale": "min_max"}.get(own["norm"], own["norm"]),
        floor=own["floor"],
        vote=own["consistency"],
        min_share=own["min_update_ratio"],
        last_step="free",
        published=not own["clear_frames"],
    )
    released = method(policy, refresh_clean_kv=False, prefix="published")
    generation = skyreels_goldens.golden_generation("motioncache", released)
    masks: dict[tuple[int, int], list[Tensor]] = {}

    def record(row: Row, decision: Decision) -> None:
        for branch in (0, 1):
            computed = torch.zeros(generation.window.num_chunks, 80, dtype=torch.uint8)
            for chunk in decision.of_branch(branch):
                mask = decision.mask(branch, chunk)
                computed[chunk - generation.window.first_chunk] = 1 if mask is None else mask
            masks.setdefault((row.window, branch), []).append(computed)

    finals = [generation.latents.clone() for _ in sample(generation, observe=record)]
    windows = generation.schedule.windows
    ends = [len(windows[0].generated) - 1, len(finals) - 1]
    for w in range(2):
        torch.testing.assert_close(finals[ends[w]][0], golden[f"{variant}.w{w}.final"], rtol=0, atol=LATENTS)
        for branch, name in enumerate(("cond", "uncond")):
            computed, expected = torch.stack(masks[w, branch]), golden[f"{variant}.w{w}.{name}.mask"].clone()
            kinds = case["windows"][w][name]["kind"]
            expected[torch.tensor([[kind == "prefix" for kind in row] for row in kinds])] = 0
            assert torch.equal(computed, expected)
    if f"{variant}.w0.cond.acc" in golden:
        assert policy.log
        for row, sums, weights in policy.log:
            window = windows[row.window]
            at = row.index - window.rows[0]
            for chunk, values in sums.items():
                place = chunk - window.first_chunk
                known = golden[f"{variant}.w{row.window}.cond.acc"][at, place]
                torch.testing.assert_close(values[0], known, rtol=0, atol=SUMS)
                known = golden[f"{variant}.w{row.window}.cond.weights_after"][at - 1, place]
                torch.testing.assert_close(weights[chunk][0].flatten(), known, rtol=0, atol=WEIGHTS)


@pytest.mark.parametrize("case", range(3))
def test_the_vote_is_the_released_codes(case):
    """It counts to more than 4, of however many frames."""
    frames, places = (manifest("motioncache/magi")["voting"][case][key] for key in ("frames", "tokens_per_frame"))
    policy = MotionCache(threshold=1.0, warmup_steps=0, chunk_phase=0, vote=4 / frames, vote_adds=True)
    wanted = ~tensors("motioncache/magi")[f"voting.{case}.reuse_in"].bool().view(1, 1, frames, places)
    voted = policy._voted(wanted).flatten()
    assert torch.equal(voted, ~tensors("motioncache/magi")[f"voting.{case}.reuse_out"].bool())


def test_keys_of_some_tokens_go_to_their_places_as_in_the_released_code():
    golden, case = tensors("motioncache/magi"), manifest("motioncache/magi")["kv_splice"]
    size, chunk = case["tokens_per_chunk"], case["chunk"]
    before, new = (golden[f"kv_splice.{name}"].transpose(0, 1)[None] for name in ("memory_before", "new"))
    cache = KvCache(1, 2, 5, size, before.shape[2] // size)
    for index, own in enumerate(before.split(size, dim=2)):
        cache.write(0, index, *own.split(5, dim=-1))
    cache.write_some(0, chunk, golden["kv_splice.index"], *new.split(5, dim=-1))
    held = torch.cat(cache.read(0, 0, before.shape[2] // size - 1), dim=-1)[0].transpose(0, 1)
    assert torch.equal(held, golden["kv_splice.memory_after"])
    seen = torch.cat(cache.read(0, 0, chunk), dim=-1)[0].transpose(0, 1)
    assert torch.equal(seen, golden["kv_splice.attended"])


# By itself.

MAGI = {"warmup_steps": 1, "chunk_phase": 1}
SKYREELS = MAGI | {"motion": "block_output", "chunk_phase_counts": "updates"}


def run(options: dict[str, Any], on_skyreels: bool, trace: Trace | None = None, **shared: Any) -> Tensor:
    goldens = skyreels_goldens if on_skyreels else magi_goldens
    made = method(MotionCache(**(SKYREELS if on_skyreels else MAGI) | options), **shared)
    return goldens.latents_of(goldens.small_generation(made), trace)


@pytest.mark.parametrize("on_skyreels", [False, True])
def test_at_no_threshold_it_is_vanilla_bit_for_bit_and_says_so(on_skyreels):
    goldens, trace = skyreels_goldens if on_skyreels else magi_goldens, Trace()
    vanilla = goldens.latents_of(goldens.small_generation(method(Never())))
    with pytest.warns(IdlePart, match="MotionCache skipped nothing"):
        assert torch.equal(run({"threshold": 0.0}, on_skyreels, trace), vanilla)
    assert trace.computed_fraction == 1
    with pytest.warns(IdlePart, match="MotionCache skipped all it could"):
        run({"threshold": 1e9, "last_step": "free"}, on_skyreels)


@pytest.mark.parametrize("on_skyreels", [False, True])
def test_it_computes_chunks_in_part_and_the_trace_says_how_many_tokens(on_skyreels):
    trace = Trace()
    latents = run({"threshold": 0.05, "token_threshold": 0.1}, on_skyreels, trace)
    assert latents.isfinite().all()
    in_part = [entry for entry in trace.entries if entry.token_mask]
    whole = [entry for entry in trace.entries if entry.action == "compute" and not entry.token_mask]
    assert in_part
    assert all(0 < entry.token_share < 1 for entry in in_part)
    assert all(entry.token_share == 1 for entry in whole)
    assert trace.remarks == []
    assert max(entry.flops for entry in in_part) < min(entry.flops for entry in whole if entry.step > 0)


def test_guidance_branches_decide_apart_by_their_own_outputs():
    """By latents, which they share, they decide alike."""
    seen = {"latent": [], "block_output": []}
    for motion, decisions in seen.items():
        policy = MotionCache(**SKYREELS | {"motion": motion, "threshold": 0.05, "token_threshold": 0.1})
        generation = skyreels_goldens.small_generation(method(policy))
        list(sample(generation, observe=lambda _, decision, kept=decisions: kept.append(decision)))
    apart = [mask for decision in seen["block_output"] for mask in decision.tokens.values()]
    assert apart
    assert all(len(mask) == 2 for mask in apart)
    golden = tensors("motioncache/skyreels")
    assert not torch.equal(golden["early.w0.cond.mask"], golden["early.w0.uncond.mask"])  # and the masks are those
    alike = [mask for decision in seen["latent"] for mask in decision.tokens.values()]
    assert alike
    assert all(len(mask) == 1 for mask in alike)


def decided(policy: MotionCache, motions: list[Tensor], distance: float = 0.1) -> list[Decision]:
    """Of one chunk at one distance, each row after the first with the motion of the row before."""
    schedule, made = sequential_schedule(1, [float(t) for t in range(len(motions), -1, -1)]), []
    for row in schedule.rows:
        if row.index:
            policy.observe(schedule.rows[row.index - 1], {0: Report(motion=motions[row.index - 1])})
        distances = {0: ChunkDistance(distance, 1.0)} if row.index else {}
        made.append(policy.decide(row, distances, schedule))
    return made


MOTION = torch.tensor([[[float("nan")] * 4, [0.0, 1.0, 2.0, 4.0]]])  # [1, 2 frames, 4 places]


def test_tokens_spend_their_budget_by_their_motion():
    """Weights 0.6, 0.7, 0.8, 1 in both frames: at a distance of 0.1 the sums are 0.06 to 0.1 a row."""
    policy = MotionCache(threshold=0.15, warmup_steps=1, chunk_phase=0, last_step="free")
    made = decided(policy, [MOTION] * 4)
    assert [decision.compute for decision in made] == [(0,), (), (0,), (0,), (0,)]
    assert made[2].tokens[0].tolist() == [[False, False, True, True] * 2]  # 0.12, 0.14, 0.16, 0.2
    assert made[3].tokens[0].tolist() == [[True, True, False, False] * 2]  # 0.18, 0.21, 0.08, 0.1
    assert made[4].tokens[0].tolist() == [[False, False, True, True] * 2]


def test_the_first_phase_decides_by_chunk_for_so_many_steps_or_updates():
    options = {"threshold": 0.15, "warmup_steps": 1, "chunk_phase": 2, "last_step": "free"}
    steps = decided(MotionCache(**options), [MOTION] * 6)
    assert [decision.compute for decision in steps] == [(0,), (), (0,), (), (0,), (0,), (0,)]
    assert [bool(decision.tokens) for decision in steps] == [False] * 4 + [True] * 3
    updates = decided(MotionCache(**options, chunk_phase_counts="updates"), [MOTION] * 6)
    assert [decision.compute for decision in updates] == [(0,), (), (0,), (), (0,), (), (0,)]
    assert [bool(decision.tokens) for decision in updates] == [False] * 6 + [True]


def test_too_few_tokens_wait_and_go_on_adding_up():
    options = {"threshold": 0.15, "warmup_steps": 1, "chunk_phase": 0, "last_step": "free", "min_share": 0.6}
    made = decided(MotionCache(**options), [MOTION] * 3)
    assert [decision.compute for decision in made] == [(0,), (), (), (0,)]  # 2 of 4 wait, then all have 0.18 or more
    assert not made[3].tokens


def test_frames_vote_on_a_place():
    motion = torch.tensor([[[float("nan")] * 4, [0.0, 1.0, 2.0, 4.0], [4.0, 2.0, 1.0, 0.0]]])
    options = {"threshold": 0.15, "warmup_steps": 1, "chunk_phase": 0, "last_step": "free"}
    alone = decided(MotionCache(**options), [motion] * 2)[2].tokens[0].view(3, 4)
    assert alone.tolist() == [[False, False, True, True]] * 2 + [[True, True, False, False]]
    voted = decided(MotionCache(**options, vote=0.5), [motion] * 2)[2].tokens[0].view(3, 4)
    assert voted.tolist() == [[False, False, True, True]] * 3
    added = decided(MotionCache(**options, vote=0.5, vote_adds=True), [motion] * 2)
    assert added[2].compute == (0,)
    assert added[2].tokens[0].view(3, 4).tolist() == [
        [False, False, True, True],
        [False, False, True, True],
        [True, True, True, True],
    ]


@pytest.mark.parametrize("published", [False, True])
def test_tokens_that_a_vote_adds_begin_again_at_0_but_as_published(published):
    motion = torch.tensor([[[4.0, 0.0, 0.0], [4.0, 0.0, 0.0], [0.0, 4.0, 0.0]]])
    options = {"warmup_steps": 1, "chunk_phase": 0, "vote": 0.5, "vote_adds": True, "published": published}
    policy = MotionCache(threshold=0.09, last_step="free", **options)
    decided(policy, [motion])
    added = policy._sums[0].view(3, 3)[2, 0].item()
    assert added == (pytest.approx(0.06) if published else 0)


def test_no_more_tokens_are_reused_than_may_be():
    policy = MotionCache(threshold=9.0, warmup_steps=1, chunk_phase=0, last_step="free", most_reused=0.5)
    made = decided(policy, [MOTION] * 2)
    assert made[1].tokens[0].tolist() == [[False, False, True, True] * 2]


def test_a_last_step_computes_or_is_free_or_stale():
    options = {"threshold": 9.0, "warmup_steps": 1, "chunk_phase": 0}
    for last_step, computes in (("own", True), ("free", False), ("stale", False)):
        made = decided(MotionCache(**options, last_step=last_step), [MOTION] * 2)
        assert [bool(decision.compute) for decision in made] == [True, False, computes]
    stale = MotionCache(threshold=0.15, warmup_steps=1, chunk_phase=0, last_step="stale")
    before, last = decided(stale, [MOTION] * 3)[-2:]
    assert torch.equal(before.tokens[0], last.tokens[0])


def test_a_nan_distance_computes():
    policy = MotionCache(threshold=9.0, warmup_steps=1, chunk_phase=0, last_step="free")
    assert all(decision.compute for decision in decided(policy, [MOTION] * 3, distance=float("nan")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token_threshold": -1}, "token_threshold=-1 must be a finite number of at least 0"),
        ({"chunk_phase": 1.5}, "chunk_phase=1.5 must be a whole number"),
        ({"chunk_phase_counts": "rows"}, "choose 'steps' or 'updates'"),
        ({"motion": "velocity"}, "choose 'latent' or 'block_output'"),
        ({"floor": 1.1}, "floor=1.1 must be a number from 0 to 1"),
        ({"power": 0}, "power=0 must be a finite number above 0"),
        ({"vote": 2}, "vote=2 must be a number from 0 to 1"),
        ({"most_reused": (0.1, 0.2, 0.3)}, "must be one share of tokens or two"),
        ({"token_distances": True, "distance": "latent"}, "choose distance='embedded_latent'"),
        ({"published": "yes"}, "published='yes' must be true or false"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MotionCache(**{"threshold": 0.1} | MAGI | options)


@pytest.mark.parametrize(
    ("goldens", "options", "shared", "message"),
    [
        (wan_goldens, {}, {}, "cannot follow MotionCache with these options: it decides on single tokens of a chunk"),
        (
            magi_goldens,
            {},
            {"budget": "1 chunk", "select": Joint()},
            "Joint asks queries of a chunk, .* choose budget=null",
        ),
        (magi_goldens, {"motion": "block_output"}, {}, "cannot follow MotionCache .* each guidance branch by itself"),
        (skyreels_goldens, {"published": True}, {}, "cannot follow MotionCache .* what chunks computed in part attend"),
        (skyreels_goldens, {}, {"attention": "native"}, "choose attention='cached'"),
        (skyreels_goldens, {"motion": "block_output"}, {"forecast": Hold(quantity="clean")}, "quantity='residual'"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(goldens, options, shared, message):
    with pytest.raises(ValueError, match=message):
        goldens.small_generation(method(MotionCache(**{"threshold": 0.1} | MAGI | options), **shared))
