"""Command-line overrides checked against conf/ before Hydra sees them: a typo gets one line and a suggestion."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from experiments.errors import BadInput
from experiments.job import ROOT, nearest

CONF = ROOT / "conf"
GROUPS = ("model", "setting", "method")


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
        for choice in _method_choices(overrides):
            groups = [o for o in _groups_only(overrides) if not o.startswith("method=")] + choice
            _check_key(_composed(tuple(groups)), key)


def compose_config(overrides: list[str]) -> DictConfig:
    """The configuration of one job, as run.py would see it."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        return compose("config", overrides=overrides)


@lru_cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    """For reading: an experiment asks for the same few hundreds of times."""
    return compose_config(list(overrides))


def _groups_only(overrides: list[str]) -> list[str]:
    """Group choices, the first of each list."""
    return [o.split(",")[0] for o in overrides if o.partition("=")[0] in GROUPS]


def _method_choices(overrides: list[str]) -> list[list[str]]:
    chosen = [o.partition("=")[2].split(",") for o in overrides if o.startswith("method=")]
    return [[f"method={name}"] for name in chosen[-1]] if chosen else [[]]


def _check_key(config: DictConfig, key: str) -> None:
    node, path = config, []
    for part in key.split("."):
        known = list(node.keys()) if isinstance(node, DictConfig) else []
        if part not in known:
            where = ".".join(path) or "the configuration"
            raise BadInput(f"{where} has no key {part!r}; {nearest(part, [k for k in known if k != '_target_'])}")
        path.append(part)
        node = OmegaConf.select(config, ".".join(path))


def config_files(group: str) -> list[Path]:
    return sorted((CONF / group).glob("*.yaml"))
