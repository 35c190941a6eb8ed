"""Configurations composed from conf/ by Hydra, and the methods that its files name."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from experiments.job.errors import BadInput
from experiments.job.method import make_method, parts_of
from experiments.job.names import nearest
from experiments.job.paths import ROOT
from flowcache.method import Method

CONF = ROOT / "conf"


def config_files(group: str) -> list[Path]:
    return sorted((CONF / group).glob("*.yaml"))


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


def baseline_method(name: str, model: str, setting: str) -> Method:
    """A method that videos may be compared with: it computes everything. Raises BadInput for any other."""
    known = [path.stem for path in config_files("method")]
    if name not in known:
        raise BadInput(f"unknown baseline {name!r}; {nearest(name, known)}")
    method, _ = named_method(name, model, setting)
    if method.reuse.skips or method.kv.budget is not None:
        raise BadInput(
            f"baseline={name} skips or drops something itself; choose one that computes everything, such as vanilla"
        )
    return method
