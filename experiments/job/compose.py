"""Configurations composed from conf/ by Hydra, and the methods that its files name."""

from __future__ import annotations

from functools import cache, lru_cache

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
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
    """Raises BadInput for what Hydra refuses."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base=None, config_dir=str(CONF)):
            return compose("config", overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise BadInput(f"configuration: {error}") from error


@lru_cache
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
