"""Configurations composed from conf/ by Hydra, and the methods that its files name."""

from __future__ import annotations

import copy
from functools import cache, lru_cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.job.errors import BadInput
from experiments.job.groups import CONF, config_files
from experiments.job.method import make_method, parts_of
from experiments.job.names import nearest
from flowcache.method import Method


def composed(overrides: list[str]) -> DictConfig:
    """Raises BadInput for what Hydra refuses.

    Hydra takes a tenth of a second, so that it is asked once for each choice from the groups, and settings are put into
    a copy of its answer as it puts them. Whatever else there is, and what does not fit, is left to it and its words.
    """
    try:
        given = [parsed(override) for override in overrides]
        settings = [override for override in given if _is_setting(override)]
        config = copy.deepcopy(_chosen(_in_order([o for o in given if not _is_setting(o)]), CONF))
        try:
            for setting in settings:
                OmegaConf.update(config, setting.key_or_group, setting.value(), merge=True)
        except OmegaConfBaseException:
            return _chosen.__wrapped__(tuple(overrides), CONF)
        return config
    except (HydraException, OmegaConfBaseException) as error:
        raise BadInput(f"configuration: {error}") from error


@lru_cache(maxsize=1024)
def parsed(override: str) -> Override:
    """Of one ``key=value``. Raises HydraException."""
    return OverridesParser.create().parse_override(override)


def _is_setting(override: Override) -> bool:
    """A value for a key that is there, and no choice from a group."""
    is_choice = (CONF / override.key_or_group).is_dir() and not isinstance(override.value(), dict)
    return _is_plain(override) and not is_choice


def _is_plain(override: Override) -> bool:
    """No list of values, nothing added or taken out, none of Hydra's own."""
    is_one = override.type is OverrideType.CHANGE and override.package is None and not override.is_sweep_override()
    return is_one and not override.is_hydra_override()


def _in_order(choices: list[Override]) -> tuple[str, ...]:
    """One spelling of choices from different groups, which an experiment makes in several orders; others as they are.

    The model and the setting that conf/config.yaml has are left out: no file that it is composed of chooses others.
    """
    lines = tuple(choice.input_line for choice in choices)
    if len({choice.key_or_group for choice in choices}) < len(choices) or not all(map(_is_plain, choices)):
        return lines
    return tuple(sorted(set(lines) - _model_and_setting(CONF)))


@cache
def _model_and_setting(conf: Path) -> frozenset[str]:
    model, setting = OmegaConf.load(conf / "config.yaml").defaults[:2]
    return frozenset((f"model={model.model}", f"setting={setting.setting}"))


@lru_cache(maxsize=256)
def _chosen(overrides: tuple[str, ...], conf: Path) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base=None, config_dir=str(conf)):
        return compose("config", overrides=list(overrides))


@cache
def named_method(name: str, model: str, setting: str) -> tuple[Method, dict[str, str]]:
    """A method by the name of its file, at its own options for a model and setting, and its parts' names by group."""
    config = composed([f"model={model}", f"setting={setting}", f"method={name}"])
    return make_method(config), parts_of(config)


@cache
def baselines() -> tuple[str, ...]:
    """The methods that compute everything, by the reuse policy that their files name."""
    names = []
    for path in config_files("method"):
        chosen = {
            key: name
            for entry in OmegaConf.load(path).defaults
            if not isinstance(entry, str)
            for key, name in entry.items()
        }
        target = OmegaConf.load(CONF / "reuse" / f"{chosen['override /reuse']}.yaml").get("_target_")
        if target is not None and not get_object(target).skips:
            names.append(path.stem)
    return tuple(names)


def baseline_method(name: str, model: str, setting: str) -> Method:
    """A method that videos may be compared with: it computes everything. Raises BadInput for any other."""
    if name not in baselines():
        raise BadInput(f"baseline={name} is no method that computes everything; {nearest(name, list(baselines()))}")
    return named_method(name, model, setting)[0]
