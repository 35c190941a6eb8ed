"""Every two parts together on every model: it runs, or is refused with a reason.

All of them at once would be thousands of videos. Made from the files of conf/, so that a new part is in it by being
there. A file that only gives another number to the policy of another file runs once.
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
    """It, and the settings of a short video; where steps are a list, there are few enough."""
    config = composed([f"model={name}"])
    short = {"height": config.setting.height, "width": config.setting.width}
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


def pairs(with_each_other: bool) -> list[tuple[str, str, str, str]]:
    """(attention, forecast, kv, store): each of the three kinds by itself, and each two of them or not."""
    kinds = [CHOICES[kind] for kind in ("forecast", "kv", "kv/store")]
    plain = ("hold", "full", "full_precision")
    found = {}  # in order
    for varied in combinations(range(3), 2 if with_each_other else 1):
        found |= dict.fromkeys(product(*(kinds[i] if i in varied else (plain[i],) for i in range(3))))
    cached = [("cached", *parts) for parts in found]
    return cached + [("native", forecast, "full", "full_precision") for forecast in CHOICES["forecast"]]


class _Enough(Exception):
    """Rows were run."""


def _stop(row: Row, decision: Decision) -> None:
    if row.index == NUM_ROWS - 1:
        raise _Enough


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("reuse", CHOICES["reuse"])
def test_every_two_parts_run_or_are_refused_with_the_reason_before_any_work(name, reuse):
    loaded, short = model(name)
    ran, refused = [], {}
    if any(texts(reuse) == texts(other) for other in CHOICES["reuse"][: CHOICES["reuse"].index(reuse)]):
        chosen = [("cached", "hold", "full", "full_precision")]
    else:
        chosen = pairs(with_each_other=reuse == "every_k")
    for attention, *parts in chosen:
        method = replace(composition(reuse, *parts), attention=attention)
        try:
            generation = loaded.generation("a red circle", loaded.frames_of(3), method, 0, **short)
        except ValueError as error:
            refused[attention, *parts] = str(error)
            continue
        trace = Trace()
        with suppress(_Enough):
            list(sample(generation, trace, observe=_stop))
        assert generation.latents.isfinite().all()
        assert {entry.row for entry in trace.entries} == set(range(NUM_ROWS))
        ran.append(parts)
    assert len(ran) + len(refused) == len(chosen)
    for reason in refused.values():
        # Which model, and either what to choose or what it cannot follow.
        assert "choose" in reason or "cannot follow" in reason


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
