"""The models' embedded checkpoints; of one that is not trained yet, a small untrained stand-in that samples alike."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import OmegaConf

from experiments.job.compose import composed
from experiments.job.groups import CONF
from experiments.job.paths import ROOT
from tests.models.wan_files import write_diffusers

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
_folders: list[TemporaryDirectory] = []  # gone with this process


@cache
def embedded(model: str) -> Path:
    """The checkpoint's folder."""
    own = ROOT / composed([f"model={model}"]).model.embedded_checkpoint
    return own if own.is_dir() else STAND_INS[model]()


@cache
def stand_in_of_wan() -> Path:
    """The goldens' transformer in the folders of diffusers, with the embedded one's settings."""
    _folders.append(TemporaryDirectory(prefix="wan"))
    folder = write_diffusers(Path(_folders[-1].name))
    recipe = OmegaConf.to_container(OmegaConf.load(CONF / "training" / "wan.yaml"))
    (folder / "sampling.json").write_text(json.dumps(recipe["sampling"]), encoding="utf-8")
    return folder


STAND_INS = {"wan": stand_in_of_wan}
