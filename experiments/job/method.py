"""From a method's YAML to its object."""

from __future__ import annotations

import dataclasses
import logging

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.job.errors import BadInput
from experiments.job.names import nearest
from flowcache.method import MethodConfig

# What cannot be imported is said once, by the BadInput.
logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)


def make_method(config: DictConfig) -> MethodConfig:
    """Instantiate a method's dataclass from its YAML; unknown keys name their nearest known one."""
    fields = {key: value for key, value in OmegaConf.to_container(config, resolve=True).items() if key != "name"}
    try:
        method = get_object(fields["_target_"])
    except Exception as error:  # whatever importing it raises
        raise BadInput(f"method._target_={fields['_target_']!r} cannot be imported ({error})") from error
    if not (isinstance(method, type) and issubclass(method, MethodConfig)):
        raise BadInput(f"method._target_={fields['_target_']!r} is no flowcache.method.MethodConfig")
    known = [f.name for f in dataclasses.fields(method)]
    for key in fields.keys() - {"_target_"}:
        if key not in known:
            raise BadInput(f"method {config.name} has no option {key!r}; {nearest(key, known)}")
    try:
        return instantiate(fields)
    except (InstantiationException, ValueError, TypeError) as error:
        raise BadInput(f"method {config.name}: {error.__cause__ or error}") from error
