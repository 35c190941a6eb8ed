"""Which SkyReels-V2 a checkpoint is, from its transformer's configuration, in diffusers' words or the original's."""

from __future__ import annotations

from pathlib import Path

from flowcache.models.checkpoint import CheckpointError
from flowcache.models.recognised import Recognised
from flowcache.models.skyreels.config import NETWORKS
from flowcache.models.wan.modules import read_config
from flowcache.models.wan.recognise import size_and_width

_TRANSFORMER = "SkyReelsV2Transformer3DModel"


def recognise(directory: Path) -> Recognised:
    """A checkpoint that ``is_skyreels``. What is wrong with it is left for loading to say.

    Raises CheckpointError for folders of diffusers that are of another model.
    """
    folder = directory / "transformer" if (directory / "transformer").is_dir() else directory
    try:
        config = read_config(folder)
    except CheckpointError:
        return Recognised("SkyReels-V2", "skyreels", __package__)
    if "num_heads" not in config and (made_for := config.get("_class_name", _TRANSFORMER)) != _TRANSFORMER:
        raise CheckpointError(
            f"{folder / 'config.json'} is of {made_for}, which is no model here: expected {_TRANSFORMER} (SkyReels-V2) "
            "or WanTransformer3DModel (causal Wan); give a checkpoint of one of these"
        )
    return Recognised("SkyReels-V2", "skyreels", __package__, *size_and_width(config, NETWORKS))
