"""One video in several processes (gloo, on the CPU): the same latents and the same trace as in one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from baselines.easycache import EasyCache
from baselines.tova import Tova
from flowcache.parallel import ALONE, Parallel, TokenSplit
from flowcache.reuse.base import Decision
from flowcache.reuse.never import Never
from tests.methods import by_row, changed, method, uniform_calls
from tests.models import magi_goldens, skyreels_goldens, wan_goldens
from tests.parallel_cases import (
    BY_KIND,
    FLOWCACHE,
    INT4,
    MAGI_3,
    VANILLA,
    WAN_GUIDED,
    Case,
    generation_of,
    outcome,
    stored,
)
from tests.processes import together

TOLERANCE = 2.5e-5  # 5e-6 of latents of up to 5: products of other sizes round otherwise


def all_cases(rank: int) -> dict[str, Any]:
    """Of one of four processes: those of branches and of two heads' shares in two pairs, then those of four."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    branches, heads = (Parallel.joined(kind, pairs[rank // 2]) for kind in ("branches", "heads"))
    found = {"split": split_and_back(Parallel.joined("heads"))}
    found |= {f"unlike {name}": decisions(unlike(case, rank), branches) for name, case in UNLIKE.items()}
    if rank < 2:
        found |= {f"branches {name}": outcome(case, branches) for name, case in BY_KIND["branches"].items()}
    else:
        found |= {f"heads 2 {name}": outcome(case, heads) for name, case in BY_KIND["heads"].items()}
    dist.barrier()
    four = Parallel.joined("heads")
    return found | {f"heads 4 {name}": outcome(case, four) for name, case in BY_KIND["heads"].items()}


EASYCACHE = EasyCache(threshold=0.3, warmup_steps=1)
# By distances, and by what computing showed.
OFTEN = changed(FLOWCACHE, reuse=replace(FLOWCACHE.reuse, threshold=0.2))
UNLIKE = {"distances": Case(magi_goldens, OFTEN, MAGI_3), "report": Case(skyreels_goldens, method(EASYCACHE))}


def unlike(case: Case, rank: int) -> Case:
    """A process that measures other numbers than its neighbour, more so than any card would: it has other noise."""
    return replace(case, settings=case.settings | {"seed": rank % 2})


def decisions(case: Case, parallel: Parallel = ALONE) -> list[str]:
    return [entry.action for entry in outcome(case, parallel)[1].entries]


def split_and_back(parallel: Parallel) -> bool:
    """Tokens that do not divide evenly, whole and as heads: 3 parts of 5 tokens, queries of two heads to a key's."""
    split = TokenSplit(parallel, parts=3, tokens=5)
    whole, keys = torch.randn(2, 1, 8, 15, 6, generator=torch.Generator().manual_seed(0))
    folded = torch.stack([whole, whole + 1], dim=3).flatten(2, 3)  # [B, H, tokens * 2, E]
    mine = slice(2 * parallel.rank, 2 * parallel.rank + 2)
    queries = torch.stack([split.own(whole, 2), split.own(whole, 2) + 1], dim=3).flatten(2, 3)
    heads = split.to_heads(queries, split.own(keys, 2))
    back = split.to_tokens(keys[:, mine].transpose(1, 2).flatten(2), heads=2, tokens=1)
    return (
        torch.equal(heads[0], folded[:, mine])
        and torch.equal(heads[1], keys[:, mine])
        and torch.equal(back, split.own(keys, 2).transpose(1, 2).flatten(2))
        and torch.equal(split.whole(split.own(whole, 2), 2), whole)
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, Any]]:
    return together(all_cases, 4, tmp_path_factory.mktemp("ranks"))


@cache
def alone(kind: str, name: str) -> Any:
    return outcome(BY_KIND[kind][name])


def test_tokens_that_do_not_divide_come_back_in_order(found):
    assert [each["split"] for each in found] == [True] * 4


@pytest.mark.parametrize("name", BY_KIND["branches"])
def test_two_branches_in_two_processes_are_one_video_to_the_bit(found, name):
    latents, trace = alone("branches", name)
    for each in found[:2]:
        theirs, told = each[f"branches {name}"]
        assert torch.equal(theirs, latents)
        same_work(told, trace)


@pytest.mark.parametrize("name", UNLIKE)
def test_processes_that_measure_other_numbers_decide_alike(found, name):
    first, second = (decisions(unlike(UNLIKE[name], rank)) for rank in (0, 1))
    assert first != second, "alone"
    together_first, together_second = (found[rank][f"unlike {name}"] for rank in (0, 1))
    assert together_first == together_second


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", BY_KIND["heads"])
def test_heads_in_several_processes_are_one_video_to_rounding(found, name, world):
    latents, trace = alone("heads", name)
    theirs = [each[f"heads {world} {name}"] for each in (found if world == 4 else found[2:])]
    for latent, told in theirs:
        torch.testing.assert_close(latent, latents, atol=TOLERANCE, rtol=0)
        assert torch.equal(latent, theirs[0][0])
        same_work(told, trace)


def same_work(told: Any, trace: Any) -> None:
    """FLOPs, decisions and memory are those of the whole video."""
    assert told.work == trace.work
    assert [entry.action for entry in told.entries] == [entry.action for entry in trace.entries]
    assert [entry.kv_tokens for entry in told.entries] == [entry.kv_tokens for entry in trace.entries]
    assert told.kv_bytes_by_use == trace.kv_bytes_by_use
    assert told.kv_bytes_used_peak == trace.kv_bytes_used_peak
    assert told.forecast_bytes_peak == trace.forecast_bytes_peak
    assert told.remarks == trace.remarks


@pytest.mark.parametrize("kind", BY_KIND)
def test_the_cases_do_what_they_are_there_for(kind):
    for name in BY_KIND[kind]:
        trace = alone(kind, name)[1]
        skips = any(word in name for word in ("flowcache", "flowcast", "magcache", "window", "bfloat16", "published"))
        assert (trace.computed_fraction < 1) == skips, name
        assert trace.remarks == [], name


# What goes wrong.


def fails_in_one(rank: int) -> None:
    parallel = Parallel.joined("heads")
    if rank == 1:
        raise RuntimeError("the card of rank 1 is out of memory")
    outcome(BY_KIND["heads"]["skyreels_native"], parallel)


def test_a_process_that_fails_ends_all_with_its_message(tmp_path: Path):
    with pytest.raises(RuntimeError, match="the card of rank 1 is out of memory"):
        together(fails_in_one, 2, tmp_path)


def test_a_process_alone_is_told_what_it_needs():
    with pytest.raises(ValueError, match="start them with torchrun"):
        Parallel.joined("heads")
    for wrong in (partial(Parallel, "heads"), partial(Parallel, "none", 0, 2), partial(Parallel, "tokens", 0, 2)):
        with pytest.raises(ValueError, match="parallel="):
            wrong()


TOKENS = by_row(lambda row: Decision(row.chunks), uses=("tokens",), attention="cached")
TWO, THREE = Parallel("branches", 0, 2), Parallel("heads", 0, 3)


@pytest.mark.parametrize(
    ("case", "parallel", "reason"),
    [
        (Case(magi_goldens, VANILLA), TWO, "MAGI-1 has no guidance branches with these settings"),
        (Case(skyreels_goldens, VANILLA), Parallel("branches", 0, 3), "has 2 guidance branches .* for 3 processes"),
        (Case(magi_goldens, TOKENS, MAGI_3), TWO, "ByRow computes single tokens of a chunk"),
        (Case(skyreels_goldens, TOKENS), Parallel("heads", 0, 2), "ByRow computes single tokens of a chunk"),
        (
            Case(skyreels_goldens, uniform_calls(threshold=0.1, warmup_steps=1, distance="latent")),
            TWO,
            "UniformCalls has each guidance branch skip by itself",
        ),
        (Case(magi_goldens, stored(VANILLA, INT4), MAGI_3), TWO, "codes of Integer are handed to no other process"),
        (Case(magi_goldens, VANILLA), THREE, "4 key-value heads cannot be shared out among 3 .* divides them: 2 or 4"),
        (
            Case(wan_goldens, method(Never(), budget="1 chunk", select=Tova()), WAN_GUIDED),
            Parallel("heads", 0, 2),
            "Tova chooses keys by all heads of a layer",
        ),
    ],
)
def test_what_a_process_would_lack_is_refused_before_any_work(case, parallel, reason):
    with pytest.raises(ValueError, match=reason):
        generation_of(case, parallel)


def test_a_selector_without_a_budget_is_not_in_the_way():
    assert generation_of(Case(wan_goldens, changed(FLOWCACHE, budget=None, select=Tova())), Parallel("heads", 0, 2))


def test_a_process_allocates_its_share_and_tells_the_whole():
    """Bytes of a budget are the whole video's, so that it keeps the same keys."""
    case = Case(magi_goldens, changed(FLOWCACHE, budget="500 KiB"), MAGI_3 | {"num_chunks": 8})
    whole, share = generation_of(case), generation_of(case, Parallel("heads", 0, 4))
    assert whole.kv_bytes_by_use == share.kv_bytes_by_use
    assert sum(cache.bytes_allocated for cache in share.caches) * 4 == whole.kv_bytes_allocated <= 500 * 1024
    branch = generation_of(case, TWO)
    assert len(branch.caches) == 1
    assert branch.kv_bytes_by_use == whole.kv_bytes_by_use
