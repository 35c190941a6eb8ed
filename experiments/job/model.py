"""The weights that a job asks for, and the model of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig

from experiments.job.errors import BadInput
from experiments.job.names import nearest
from experiments.job.paths import ROOT, inside_root


def find_checkpoint(config: DictConfig) -> Path | None:
    """The directory of the weights, given or the setting's own; None where it has none."""
    if config.checkpoint is not None:
        return inside_root(config.checkpoint)
    return ROOT / config.model.embedded_checkpoint if config.setting.embedded else None


def random_sizes(config: DictConfig) -> dict[str, Any] | None:
    """What the loader of random weights takes beside a checkpoint; None for a checkpoint's weights. Raises BadInput."""
    if config.weights not in ("checkpoint", "random"):
        raise BadInput(f"weights={config.weights} is unknown; {nearest(str(config.weights), ('checkpoint', 'random'))}")
    if config.weights == "checkpoint":
        return None
    sizes = {key: value for key, value in config.model.on_meta.items() if key != "_target_"}
    return sizes if find_checkpoint(config) is None else {}


def checkpoint_of(config: DictConfig) -> Path:
    """``find_checkpoint``'s. Raises BadInput where there is none."""
    checkpoint = find_checkpoint(config)
    if checkpoint is None:
        raise BadInput(
            f"setting={config.setting.name} needs the official weights: download them and give checkpoint=<directory>, "
            "or run setting=embedded, whose weights are in this repository; device=meta (a dry run) and weights=random "
            "(for speed alone) need none"
        )
    return checkpoint


@lru_cache(maxsize=1)  # the last one only: two models of full size do not fit a device
def load_model(
    loader: str,
    checkpoint: Path | None,
    device: str,
    random: tuple[tuple[str, Any], ...] | None,
    attention_backend: str,
    compiled: bool,
) -> Any:
    """The model, the same again for what follows on one checkpoint. Raises BadInput, CheckpointError,
    FileNotFoundError or ValueError.

    Args:
        random: what the loader of random weights takes beside a checkpoint; None loads the checkpoint's.
    """
    from transformers.utils.logging import disable_progress_bar  # imported late: the dry run does without

    disable_progress_bar()  # it would draw into ours
    model = _loader(loader, checkpoint, device, random)()
    model.set_kernels(attention_backend, compiled)
    return model


def _loader(
    name: str, checkpoint: Path | None, device: str, random: tuple[tuple[str, Any], ...] | None
) -> Callable[[], Any]:
    """The function that a configuration names, with its arguments, if it takes such. Raises BadInput."""
    positional, named = (checkpoint,), {"device": device}
    if random is not None:
        positional, named = (), {**dict(random), "checkpoint": checkpoint, **named}
    try:
        loader = get_object(name)
        inspect.signature(loader).bind(*positional, **named)
    except Exception as error:  # whatever importing it raises
        raise BadInput(
            f"model.loader={name!r} is no loader of a model ({' '.join(str(error).split())}); expected a function of a "
            "checkpoint's directory and a device that returns a flowcache.models.base.VideoModel"
        ) from error
    return partial(loader, *positional, **named)
