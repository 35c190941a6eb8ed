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
from flowcache.parallel import ALONE, Parallel


def find_checkpoint(config: DictConfig) -> Path | None:
    """The directory or file of the weights, given or the setting's own; None where it has none.

    Raises BadInput where the setting's own is not there.
    """
    if config.checkpoint is not None:
        return inside_root(config.checkpoint)
    if not config.setting.embedded:
        return None
    own = ROOT / config.model.embedded_checkpoint
    if not own.is_dir():
        raise BadInput(
            f"model={config.model.name} has no embedded checkpoint here ({config.model.embedded_checkpoint}); train it "
            f"(python -m experiments.train_embedded model={config.model.name}), or give checkpoint=<directory>"
        )
    return own


def beside_checkpoint(config: DictConfig) -> tuple[dict[str, Path], dict[str, Any]]:
    """What the loader takes beside a checkpoint: files by name, and options; what is null is left out."""
    files, options = (dict(config.model.get(key) or {}) for key in ("files", "loading"))
    return (
        {name: inside_root(path) for name, path in files.items() if path is not None},
        {name: value for name, value in options.items() if value is not None},
    )


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
    beside: tuple[tuple[str, Any], ...],
    random: tuple[tuple[str, Any], ...] | None,
    attention_backend: str,
    compiled: bool,
    parallel: Parallel = ALONE,
) -> Any:
    """The model, the same again for what follows on one checkpoint. Raises BadInput, CheckpointError,
    FileNotFoundError or ValueError.

    Args:
        beside: what the loader takes beside a checkpoint.
        random: what the loader of random weights takes beside a checkpoint; None loads the checkpoint's.
    """
    from transformers.utils.logging import disable_progress_bar  # imported late: the dry run does without

    disable_progress_bar()  # it would draw into ours
    model = _loader(loader, checkpoint, device, beside, random)()
    model.set_kernels(attention_backend, compiled)
    if parallel is not ALONE:
        model.set_parallel(parallel)
    return model


def _loader(
    name: str,
    checkpoint: Path | None,
    device: str,
    beside: tuple[tuple[str, Any], ...],
    random: tuple[tuple[str, Any], ...] | None,
) -> Callable[[], Any]:
    """The function that a configuration names, with its arguments, if it takes such. Raises BadInput."""
    positional, named = (checkpoint,), {**dict(beside), "device": device}
    if random is not None:
        positional, named = (), {**dict(random), "checkpoint": checkpoint, "device": device}
    try:
        loader = get_object(name)
        inspect.signature(loader).bind(*positional, **named)
    except Exception as error:  # whatever importing it raises
        raise BadInput(
            f"model.loader={name!r} is no loader of a model ({' '.join(str(error).split())}); expected a function of a "
            "checkpoint's directory and a device that returns a flowcache.models.base.VideoModel"
        ) from error
    return partial(loader, *positional, **named)
