"""Command-line overrides checked against conf/ before Hydra sees them: a typo gets one line and a suggestion."""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.job.compose import CONF, composed
from experiments.job.errors import BadInput
from experiments.job.job import check_config
from experiments.job.names import nearest

GROUPS = ("model", "setting", "method", "reuse", "forecast", "kv", "kv/store")


def check_overrides(arguments: list[str]) -> None:
    """Refuse unknown names and keys in ``key=value`` arguments, of every job of a multirun. Raises BadInput."""
    overrides = [a for a in arguments if not a.startswith("-")]
    for argument in overrides:
        key, separator, value = argument.lstrip("+~").partition("=")
        if not separator:
            raise BadInput(f"argument {argument!r} is not of the form key=value")
        if key in GROUPS:
            known = sorted(path.stem for path in (CONF / key).glob("*.yaml"))
            for name in value.split(","):
                if name not in known:
                    raise BadInput(f"unknown {key} {name!r}; {nearest(name, known)}")
    for argument in overrides:
        if argument.startswith(("+", "~", "hydra")):
            continue
        key, _, value = argument.partition("=")
        if key in GROUPS:
            continue
        for choices in _group_choices(overrides):
            _check_key(_composed(choices), key)


def check_jobs(overrides: list[str], multirun: bool, here: bool = True) -> None:
    """Refuse bad values and a folder that cannot be written, of every job, before Hydra makes any. Raises BadInput.

    A device that is missing is only refused of jobs that run ``here``.
    """
    for one in _jobs(overrides) if multirun else [overrides]:
        try:
            check_config(compose_config(one), here)
        except OmegaConfBaseException as error:
            raise BadInput(f"configuration: {error}") from error


def _jobs(overrides: list[str]) -> list[list[str]]:
    """Every job's overrides of a multirun, whose values are lists, ranges or choices."""
    choices = []
    for override in _parsed(overrides):
        if override.is_sweep_override():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([override.input_line])
    return [list(job) for job in itertools.product(*choices)]


def _parsed(overrides: list[str]) -> list[Any]:
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise BadInput(f"{error}; quote a value that holds spaces, commas, brackets or quotes") from error


def compose_config(overrides: list[str]) -> DictConfig:
    """The configuration of one job, as run.py would see it. Raises BadInput."""
    for override in _parsed(overrides):
        if override.is_sweep_override():
            raise BadInput(f"{override.input_line} is a list of values; run each with -m, or write [...] for one list")
    return composed(overrides)


@lru_cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    """For reading: an experiment asks for the same few hundreds of times."""
    return compose_config(list(overrides))


def _group_choices(overrides: list[str]) -> list[tuple[str, ...]]:
    """Every combination of the groups' choices, of which each override's last counts."""
    chosen = {o.partition("=")[0]: o.partition("=")[2].split(",") for o in overrides if o.partition("=")[0] in GROUPS}
    combinations = itertools.product(*([f"{group}={name}" for name in names] for group, names in chosen.items()))
    return list(combinations)


def _check_key(config: DictConfig, key: str) -> None:
    node, path = config, []
    for part in key.split("."):
        known = list(node.keys()) if isinstance(node, DictConfig) else []
        if part not in known:
            where = ".".join(path) or "the configuration"
            raise BadInput(f"{where} has no key {part!r}; {nearest(part, [k for k in known if k != '_target_'])}")
        path.append(part)
        node = OmegaConf.select(config, ".".join(path))
