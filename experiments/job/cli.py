"""Command-line overrides checked against conf/ before Hydra sees them: a typo gets one line and a suggestion."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.job.compose import composed, parsed
from experiments.job.errors import BadInput
from experiments.job.groups import groups
from experiments.job.job import check_config
from experiments.job.names import nearest
from experiments.job.quoting import typed


def check_overrides(arguments: list[str]) -> None:
    """Refuse unknown names and keys in ``key=value`` arguments, of every job of a multirun. Raises BadInput."""
    for place, argument in enumerate(arguments):
        if argument.startswith("-"):
            raise BadInput(f"{argument} is no option of this command; give arguments of the form key=value")
        if "=" not in argument and not argument.startswith("~"):
            raise BadInput(f"argument {argument!r} is not of the form key=value{_torn_apart(arguments, place)}")
    choices, settings = [], []
    for override in map(_parsed, arguments):
        if override.is_hydra_override():
            continue
        if override.is_delete():
            raise BadInput(f"{override.input_line} would take out a setting, and a run needs all; give it a value")
        if _key(override) in groups():
            choices.append([f"{_key(override)}={name}" for name in _names(override)])
        else:
            settings.append(override)
    for choice in itertools.product(*choices):
        for override in settings:
            _check_key(_composed(choice), _key(override), override.value(), override)


def check_jobs(overrides: list[str], multirun: bool, here: bool = True) -> None:
    """Refuse bad values and a folder that cannot be written, of every job, before Hydra makes any. Raises BadInput.

    A device that is missing is only refused of jobs that run ``here``.
    """
    for one in _jobs(overrides) if multirun else [overrides]:
        try:
            check_config(compose_config(one), here)
        except OmegaConfBaseException as error:
            raise BadInput(f"configuration: {error}") from error


def compose_config(overrides: list[str]) -> DictConfig:
    """The configuration of one job, as run.py would see it. Raises BadInput."""
    for override in map(_parsed, overrides):
        if override.is_sweep_override():
            key, _, value = override.input_line.partition("=")
            raise BadInput(
                f"{override.input_line} is a list of values; if it is one text, give {typed(key, value)}; a list is "
                f"written {key}=[...], and run.py -m runs a job for each value"
            )
    return composed(overrides)


@lru_cache
def _composed(choices: Sequence[str]) -> DictConfig:
    """For reading: an experiment asks for the same few hundreds of times."""
    return compose_config(list(choices))


def _jobs(overrides: list[str]) -> list[list[str]]:
    """Every job's overrides of a multirun, whose values are lists, ranges or choices."""
    choices = []
    for override in map(_parsed, overrides):
        if override.is_sweep_override():
            choices.append([f"{override.get_key_element()}={value}" for value in _values(override)])
        else:
            choices.append([override.input_line])
    return [list(job) for job in itertools.product(*choices)]


def _values(override: Override) -> list[str]:
    """As they are written, one for every job of a multirun."""
    if isinstance(pattern := override.value(), Glob) and _key(override) in groups():
        return pattern.filter(groups()[_key(override)].names)
    return list(map(str, override.sweep_string_iterator()))


def _parsed(argument: str) -> Override:
    try:
        return parsed(argument)
    except HydraException as error:
        key, _, value = argument.partition("=")
        as_list = f"; in a list quote every text: {typed(key, 'one', 'two', as_list=True)}" if "[" in value else ""
        raise BadInput(
            f"{argument} cannot be read; quote a text that holds spaces, commas, brackets, quotes or such: "
            f"{typed(key, value)}{as_list}"
        ) from error


def _torn_apart(given: list[str], place: int) -> str:
    """How to type a text whose words a shell has handed on one by one, if that is what an argument looks like."""
    key, separator, start = given[place - 1].partition("=") if place else ("", "", "")
    if not separator:
        return ""
    words = itertools.takewhile(lambda argument: "=" not in argument, given[place:])
    return f"; if it belongs to {key}, give {typed(key, ' '.join([start, *words]))}"


def _key(override: Override) -> str:
    return override.get_key_element().lstrip("+~")


def _names(override: Override) -> list[str]:
    """The names that an override chooses from its group. Raises BadInput for one that is none of it."""
    written = _values(override) if override.is_sweep_override() else [override.get_value_element_as_str()]
    names, known = [value.strip("'\"") for value in written], groups()[_key(override)].names
    for name in names or [override.get_value_string()]:
        if name not in known:
            raise BadInput(f"unknown {_key(override)} {name!r}; {nearest(name, known)}")
    return names


def _check_key(config: DictConfig, key: str, value: Any, override: Override) -> None:
    """Refuse a key that a configuration has not, and one value in place of several settings. Raises BadInput."""
    node, path = config, []
    for part in key.split("."):
        names = [str(name) for name in node] if isinstance(node, DictConfig) else []
        if part not in names:
            if key == "experiment":
                raise BadInput(f"{override.input_line} is for python -m experiments.sweep; run.py runs one job")
            where, beside = (".".join(path), set()) if path else ("the configuration", groups().keys())
            raise BadInput(f"{where} has no key {part!r}; {nearest(part, sorted({*names, *beside} - {'_target_'}))}")
        path.append(part)
        node = OmegaConf.select(config, ".".join(path))
    if override.is_add():
        raise BadInput(f"{override.input_line}: {key} is there already; leave out the +")
    if not isinstance(node, DictConfig):
        return
    if not isinstance(value, dict):
        known = ", ".join(str(name) for name in node if name != "_target_")
        raise BadInput(f"{override.input_line}: {key} holds settings; give {key}.<name>=<value>, of {known}")
    for name, inner in value.items():
        _check_key(config, f"{key}.{name}", inner, override)
