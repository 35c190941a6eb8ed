"""Every two parts together on every model: it runs, or is refused with a reason.

Every composition would be thousands of videos, and so would a video for every two parts. Those here hold several pairs
each, and where one is refused its pairs have videos of their own. Made from the files of conf/, so that a new part is
in it by being there. A file that only gives another number to the policy of another file runs once.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields, replace
from functools import cache
from itertools import combinations, product
from typing import Any

import pytest
from hydra.utils import get_object

from experiments.job.compose import composed
from flowcache.method import Method
from flowcache.reuse.base import Decision
from flowcache.sampler import sample
from flowcache.schedule import Row
from flowcache.trace import Trace
from tests.experiments.conf_parts import CHOICES, GROUPS, part
from tests.experiments.embedded import MODELS, embedded

NUM_STEPS, NUM_ROWS = 8, 6


@cache
def model(name: str) -> tuple[Any, dict[str, int]]:
    """It, and the settings of a short, small video; where steps are a list, there are few enough."""
    config = composed([f"model={name}"])
    short = {"height": config.setting.height // 2, "width": config.setting.width // 2}
    short |= {} if config.setting.num_steps is None else {"num_steps": NUM_STEPS}
    return get_object(config.model.loader)(embedded(name)), short


def composition(reuse: str, forecast: str, kv: str, store: str) -> Method:
    selected = part("kv", kv).kv
    return Method(
        reuse=part("reuse", reuse).reuse,
        forecast=part("forecast", forecast).forecast,
        kv=replace(selected, store=part("kv/store", store).kv.store),
    )


@cache
def texts(reuse: str) -> dict[str, str]:
    """What a policy's file says in words, its name aside."""
    options = composed([f"reuse={reuse}"]).reuse.items()
    return {key: value for key, value in options if isinstance(value, str) and key != "name"}


FORECASTS, KEPT, STORES = (CHOICES[kind] for kind in ("forecast", "kv", "kv/store"))
PLAIN = ("hold", "full", "full_precision")
Parts = tuple[str, str, str]  # forecast, kv, store


def each_once() -> list[Parts]:
    """All parts, in as few compositions as there are of the kind with most."""
    most = max(map(len, (FORECASTS, KEPT, STORES)))
    return [tuple(kind[i % len(kind)] for kind in (FORECASTS, KEPT, STORES)) for i in range(most)]


def each_pair() -> list[Parts]:
    """Every two parts, of different kinds."""
    places = product(range(len(FORECASTS)), range(len(KEPT)))
    return [(FORECASTS[i], KEPT[j], STORES[(i + j) % len(STORES)]) for i, j in places]


def with_plain(parts: Parts, number: int) -> list[Parts]:
    """As many of the parts at a time, beside those that do least."""
    return [
        tuple(part if i in kept else plain for i, (part, plain) in enumerate(zip(parts, PLAIN, strict=True)))
        for kept in combinations(range(3), number)
    ]


class _Enough(Exception):
    """Rows were run."""


def _stop(row: Row, decision: Decision) -> None:
    if row.index == NUM_ROWS - 1:
        raise _Enough


def made_or_refused(name: str, reuse: str, parts: Parts, attention: str = "cached") -> str | None:
    """The reason of a refusal; None where it ran."""
    loaded, short = model(name)
    method = replace(composition(reuse, *parts), attention=attention)
    reason = None
    try:
        generation = loaded.generation("a red circle", loaded.frames_of(3), method, 0, **short)
    except ValueError as error:
        reason = str(error)
    if reason is not None:  # which model, and either what to choose or what it cannot follow
        assert "choose" in reason or "cannot follow" in reason
        return reason
    trace = Trace()
    with suppress(_Enough):
        list(sample(generation, trace, observe=_stop))
    assert generation.latents.isfinite().all()
    assert {entry.row for entry in trace.entries} == set(range(NUM_ROWS))
    return None


def test_as_few_compositions_hold_every_part_and_every_pair():
    for place, kind in enumerate((FORECASTS, KEPT, STORES)):
        assert {parts[place] for parts in each_once()} == set(kind)
    for one, other in combinations(range(3), 2):
        held = {(parts[one], parts[other]) for parts in each_pair()}
        assert held == set(product((FORECASTS, KEPT, STORES)[one], (FORECASTS, KEPT, STORES)[other]))
    assert with_plain(("linear", "joint", "int8"), 2) == [
        ("linear", "joint", "full_precision"),
        ("linear", "full", "int8"),
        ("hold", "joint", "int8"),
    ]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("reuse", CHOICES["reuse"])
def test_every_two_parts_run_or_are_refused_with_the_reason_before_any_work(name, reuse):
    if any(texts(reuse) == texts(other) for other in CHOICES["reuse"][: CHOICES["reuse"].index(reuse)]):
        made_or_refused(name, reuse, PLAIN)
        return
    chosen, together = (each_pair(), 2) if reuse == "every_k" else (each_once(), 1)
    apart: dict[Parts, None] = {}  # in order
    for parts in chosen:
        if made_or_refused(name, reuse, parts) is not None:
            apart |= dict.fromkeys(with_plain(parts, together))
    for parts in apart:
        made_or_refused(name, reuse, parts)
    for forecast in FORECASTS:
        made_or_refused(name, reuse, (forecast, "full", "full_precision"), attention="native")


def test_some_compositions_are_refused_and_most_run():
    """So that the test above is about both."""
    loaded, _ = model("skyreels")
    with pytest.raises(ValueError, match="quantity='displacement' does not exist on SkyReels-V2; choose 'residual'"):
        loaded.generation("a red circle", 17, composition("every_k", "displacement", "full", "full_precision"), 0)
    loaded, _ = model("magi")
    with pytest.raises(ValueError, match="distance='rescaled_modulation' is unknown to MAGI-1; choose 'embedded_lat"):
        loaded.generation("a red circle", 24, composition("uniform_calls", "hold", "full", "full_precision"), 0)
    assert len(CHOICES["reuse"]) * len(CHOICES["forecast"]) * len(CHOICES["kv"]) >= 7 * 3 * 3


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in GROUPS for name in CHOICES[group]])
def test_a_part_is_named_after_its_file_and_spells_out_every_option(group, name):
    config = composed([f"{group}={name}"])
    node = config.kv.store if group == "kv/store" else config[group]
    assert node.name == name
    options = {option.name for option in fields(get_object(node["_target_"]))}
    given = set(node) - {"name", "_target_", "budget", "store"}
    assert given <= options
    missing = options - given
    assert missing == ({"quantity"} & missing if group == "forecast" else set())
