"""Types of a configuration's values: what YAML and the command line let through, and a job could not use."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.job.errors import BadInput
from experiments.job.names import nearest
from flowcache.kernels import ATTENTION_BACKENDS, AUTO

WANDB_MODES = ("offline", "online", "disabled")


def check_types(config: DictConfig) -> None:
    """Refuse values of the common options that are of another type, or none of the known ones. Raises BadInput."""
    for key in ("force", "any_code", "debug", "compile"):
        if not isinstance(config[key], bool):
            raise BadInput(f"{key}={config[key]} must be true or false")
    if not isinstance(config.setting.embedded, bool):
        raise BadInput(f"setting.embedded={config.setting.embedded} must be true or false")
    if config.attention_backend not in (AUTO, *ATTENTION_BACKENDS):
        known = (AUTO, *ATTENTION_BACKENDS)
        raise BadInput(
            f"attention_backend={config.attention_backend} is unknown; {nearest(str(config.attention_backend), known)}"
        )
    for key in ("device", "output_dir"):
        if not isinstance(config[key], str) or not config[key].strip() or "\0" in config[key]:
            raise BadInput(f"{key}={config[key]!r} must be a name; conf/config.yaml says which")
    for key in ("checkpoint", "replay"):
        if config[key] is not None and (not isinstance(config[key], str) or not config[key].strip("\0 ")):
            raise BadInput(f"{key}={config[key]!r} must be a path, or null")
    if config.plan is not None and not isinstance(config.plan, bool):
        raise BadInput(f"plan={config.plan} must be true, false or null")


def wandb_settings(config: DictConfig) -> dict[str, Any]:
    """The configuration's W&B settings. Raises BadInput for wrong ones."""
    settings = OmegaConf.to_container(config.wandb, resolve=True)
    if settings["mode"] not in WANDB_MODES:
        raise BadInput(f"unknown wandb.mode {str(settings['mode'])!r}; {nearest(str(settings['mode']), WANDB_MODES)}")
    if not isinstance(settings["tags"], list):
        raise BadInput(f"wandb.tags={settings['tags']} must be a list: wandb.tags=[one,two]")
    return settings


def check_whole_numbers(values: dict[str, Any], smallest: int = 0) -> None:
    """Refuse, by their keys, values that are not whole numbers of at least ``smallest``. Raises BadInput."""
    for key, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
            raise BadInput(f"{key}={value!r} must be a whole number of at least {smallest}")
