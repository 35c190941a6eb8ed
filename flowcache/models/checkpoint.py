"""Safetensors checkpoints, whole or in shards; every mismatch is reported by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

INDEX_NAMES = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json")
FILE_NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")
_SHOWN_KEYS = 5


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged or of another model; the message says which and what to do."""


def find_weights(directory: Path) -> dict[Path, list[str] | None]:
    """The safetensors files of a checkpoint directory and the tensors to take from each (None: all)."""
    for name in INDEX_NAMES:
        index = directory / name
        if index.is_file():
            try:
                weight_map = json.loads(index.read_text())["weight_map"]
            except (json.JSONDecodeError, KeyError) as error:
                raise CheckpointError(f"{index} is not a safetensors index ({error}); download it again") from error
            shards: dict[Path, list[str]] = {}
            for key, shard in weight_map.items():
                shards.setdefault(directory / shard, []).append(key)
            missing = [path.name for path in shards if not path.is_file()]
            if missing:
                raise CheckpointError(
                    f"{directory} lacks {len(missing)} of {len(shards)} shards ({', '.join(missing[:_SHOWN_KEYS])}); "
                    "finish the download"
                )
            return dict(shards)
    for name in FILE_NAMES:
        if (directory / name).is_file():
            return {directory / name: None}
    numbered = {path: _SHARD.search(path.name) for path in sorted(directory.glob("*.safetensors"))}
    if any(numbered.values()):  # shards of the original SkyReels-V2 releases, which have no index
        shards = {path: None for path, match in numbered.items() if match}
        total = max(int(match[2]) for match in numbered.values() if match)
        if len(shards) != total:
            raise CheckpointError(f"{directory} holds {len(shards)} of {total} shards; finish the download")
        return shards
    raise CheckpointError(
        f"no weights in {directory}: expected {FILE_NAMES[0]}, {FILE_NAMES[1]} or a sharded index beside them; "
        "check the path, or download the checkpoint there"
    )


def load_weights(
    module: nn.Module,
    directory: Path,
    device: torch.device | str,
    keep_dtype: bool = True,
    rename: Callable[[str], str] | None = None,
) -> None:
    """Load a checkpoint directory into ``module`` and move it to ``device``.

    Keys and shapes must match exactly. Each tensor takes the type of the module's own parameter (the network keeps some
    parts in float32 whatever the rest) unless ``keep_dtype`` is False, which keeps the file's. ``rename`` turns the
    file's names into the module's. The module may be on the meta device: tensors are assigned, not copied.
    """
    own = module.state_dict()
    found: dict[str, Tensor] = {}
    for path, keys in find_weights(directory).items():
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                for stored in file.keys() if keys is None else keys:
                    tensor, key = file.get_tensor(stored), stored if rename is None else rename(stored)
                    found[key] = tensor.to(own[key].dtype) if keep_dtype and key in own else tensor
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged or cut short ({error}); download it again") from error
    _compare(own, found, directory)
    module.load_state_dict(found, strict=True, assign=True)
    module.to(device).eval().requires_grad_(False)


def _compare(own: dict[str, Tensor], found: dict[str, Tensor], directory: Path) -> None:
    problems = []
    for title, keys in (("missing", own.keys() - found.keys()), ("unexpected", found.keys() - own.keys())):
        if keys:
            shown = ", ".join(sorted(keys)[:_SHOWN_KEYS]) + (", ..." if len(keys) > _SHOWN_KEYS else "")
            problems.append(f"{len(keys)} {title} keys ({shown})")
    wrong = [key for key in sorted(own.keys() & found.keys()) if own[key].shape != found[key].shape]
    if wrong:
        first = wrong[0]
        problems.append(
            f"{len(wrong)} wrong shapes (first {first}: expected {list(own[first].shape)}, "
            f"found {list(found[first].shape)})"
        )
    if problems:
        raise CheckpointError(
            f"the weights in {directory} do not fit the configuration: {'; '.join(problems)}. "
            "Use the config.json that belongs to these weights"
        )
