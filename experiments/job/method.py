"""From the configuration's groups (reuse, forecast, kv and its store, what methods share) to a method and its name."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.job.errors import BadInput
from experiments.job.names import nearest
from experiments.job.paths import inside_root
from flowcache.forecast.base import Forecast
from flowcache.kv.policy import KvPolicy
from flowcache.kv.select.base import KeySelector
from flowcache.kv.select.full import Everything
from flowcache.kv.store.base import KvStore
from flowcache.method import Method
from flowcache.part import Part
from flowcache.reuse.base import ReusePolicy

# What cannot be imported is said once, by the BadInput.
logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)

PARTS = ("reuse", "forecast", "kv")


def make_method(config: DictConfig) -> Method:
    """The method of a composed configuration. Raises BadInput for what its parts refuse, unknown keys among it.

    A selector without a budget has nothing to select, but for one by head, and is left out: such methods are equal.
    """
    kv = OmegaConf.to_container(config.kv, resolve=True)
    _check_given("kv", kv, "budget")
    shared = {key: value for key, value in OmegaConf.to_container(config.method, resolve=True).items() if key != "name"}
    _check_keys("method", shared, [f.name for f in dataclasses.fields(Method) if f.name not in PARTS])
    store, budget = _part("kv.store", kv.pop("store"), KvStore), kv.pop("budget")
    select = _part("kv", kv, KeySelector)
    try:
        if budget is None and not select.by_head:
            select = Everything()
        policy = KvPolicy(select=select, store=store, budget=budget)
    except (ValueError, TypeError) as error:
        raise BadInput(f"kv {config.kv.name}: {error}") from error
    reuse = _part("reuse", OmegaConf.to_container(config.reuse, resolve=True), ReusePolicy)
    forecast = _part("forecast", OmegaConf.to_container(config.forecast, resolve=True), Forecast)
    try:
        return Method(reuse=reuse, forecast=forecast, kv=policy, **shared)
    except (ValueError, TypeError) as error:
        raise BadInput(f"method {config.method.name}: {error}") from error


def name_of(config: DictConfig, own: Method, own_parts: Mapping[str, str]) -> str:
    """What a method is called: the name in its YAML, and the parts that are others than ``own_parts``, which that names
    by itself for ``own``.

    With another reuse policy it is another method, and has no name but its parts'.
    """
    chosen = parts_of(config)
    keeps_all = config.kv.budget is None and not get_object(config.kv["_target_"]).by_head
    if keeps_all and own.kv.budget is None and not own.kv.select.by_head:  # whatever would select
        chosen["kv"] = own_parts["kv"]
    replaced = {part: name for part, name in chosen.items() if name != own_parts[part]}
    return " + ".join([replaced.pop("reuse", config.method.name), *replaced.values()])


def parts_of(config: DictConfig) -> dict[str, str]:
    """The names of a composed configuration's parts, by group."""
    return {**{part: config[part].name for part in PARTS}, "kv/store": config.kv.store.name}


def _part(group: str, fields: dict[str, Any], kind: type[Part]) -> Any:
    """Instantiate a part's dataclass from its YAML. Raises BadInput."""
    _check_given(group, fields, "name", "_target_")
    name, target = fields.pop("name"), fields["_target_"]
    try:
        part = get_object(target)
    except Exception as error:  # whatever importing it raises
        raise BadInput(f"{group}._target_={target!r} cannot be imported ({error})") from error
    if not (isinstance(part, type) and issubclass(part, kind)):
        raise BadInput(f"{group}._target_={target!r} is no {kind.__module__}.{kind.__qualname__}")
    _check_keys(f"{group} {name}", fields.keys() - {"_target_"}, [f.name for f in dataclasses.fields(part)])
    for option in (calibration.own_option() for calibration in part.calibrated):
        if isinstance(fields.get(option), str):
            fields[option] = str(inside_root(fields[option]))  # wherever the program is started
    try:
        return instantiate(fields)
    except (InstantiationException, ValueError, TypeError) as error:
        raise BadInput(f"{group} {name}: {error.__cause__ or error}") from error


def _check_given(group: str, fields: dict[str, Any], *needed: str) -> None:
    for key in needed:
        if key not in fields:
            raise BadInput(
                f"{group} {fields.get('name', '')}".strip() + f" gives no {key}; add it to the part's file in "
                f"conf/{group.replace('.', '/')} (CONTRIBUTING.md says what a file gives)"
            )


def _check_keys(what: str, keys: Any, known: list[str]) -> None:
    for key in keys:
        if key not in known:
            raise BadInput(f"{what} has no option {key!r}; {nearest(key, known)}")
