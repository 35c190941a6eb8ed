"""Safetensors checkpoints, whole or in shards; every mismatch is reported by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

INDEX_NAMES = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json")
FILE_NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
PICKLED = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")
_SHOWN_KEYS = 5


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged or of another model; the message says which and what to do."""


def find_weights(directory: Path) -> dict[Path, list[str] | None]:
    """The safetensors files of a checkpoint directory and the tensors to take from each (None: all).

    Nothing else is opened: pickled weights can run code as they are read. Raises CheckpointError.
    """
    for name in INDEX_NAMES:
        index = directory / name
        if index.is_file():
            shards: dict[Path, list[str]] = {}
            for key, shard in _weight_map(index).items():
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
    pickled = sorted(path.name for path in directory.glob("*") if path.suffix in PICKLED)
    if pickled:
        raise CheckpointError(
            f"{directory} holds pickled weights ({', '.join(pickled[:_SHOWN_KEYS])}), which can run code as they are "
            "read and are refused; download the checkpoint's safetensors files, or convert these where you trust them"
        )
    raise CheckpointError(
        f"no weights in {directory}: expected {FILE_NAMES[0]}, {FILE_NAMES[1]} or a sharded index beside them; "
        "check the path, or download the checkpoint there"
    )


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError, which says that the file is not ``what``; FileNotFoundError as usual."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not {what} ({error}); download it again") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} is not {what} (no JSON object); download it again")
    return document


def _weight_map(index: Path) -> dict[str, str]:
    """Tensors and their shards, which must lie beside the index: a checkpoint has no business elsewhere."""
    weight_map = read_json(index, "a safetensors index").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index} is not a safetensors index (no 'weight_map'); download it again")
    strange = [
        shard for shard in weight_map.values() if Path(shard).name != shard or not shard.endswith(".safetensors")
    ]
    if strange:
        raise CheckpointError(
            f"{index} names {strange[0]!r}, and shards are safetensors files beside it; do not use this checkpoint"
        )
    return weight_map


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


@contextmanager
def _told_by_errors_alone() -> Iterator[None]:
    """Keep transformers from printing its findings, which are raised here instead."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_text_encoder(
    kind: type, name: str, encoder: Path, tokenizer: Path, dtype: torch.dtype, channels: int | None = None
) -> tuple[nn.Module, Any]:
    """A text encoder of transformers and its tokenizer, from directories alone: no download, no code of theirs.

    Pickled weights, as Google's and DeepFloyd's T5 have, are read by torch's restricted unpickler, which refuses
    whatever is no tensor.

    Args:
        kind: transformers' class, and what ``name`` calls it.
        channels: width that the captions must have; None takes any.

    Raises CheckpointError; above all where weights are missing, which transformers would draw at random.
    """
    from transformers import AutoTokenizer

    if not any((tokenizer / file).is_file() for file in TOKENIZER_FILES):  # transformers would make up an empty one
        raise CheckpointError(
            f"{encoder} and {tokenizer} are not {name} and its tokenizer (no {' or '.join(TOKENIZER_FILES)} in the "
            "latter); download them again"
        )
    options = {"weights_only": True, "output_loading_info": True}
    try:
        with _told_by_errors_alone():
            loaded, found = kind.from_pretrained(encoder, dtype=dtype, local_files_only=True, **options)
            words = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=False)
        size, width = loaded.config.vocab_size, loaded.config.d_model
    except Exception as error:  # transformers raises what its parts raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{encoder} and {tokenizer} are not {name} and its tokenizer ({reason}); download them again"
        ) from error
    wrong = [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]
    if wrong:
        shown = ", ".join(sorted(wrong)[:_SHOWN_KEYS])
        raise CheckpointError(
            f"the weights in {encoder} do not fit {name}: {len(wrong)} are missing or of another shape ({shown}); "
            "download them again, with the config.json that belongs to them"
        )
    if channels not in (None, width):
        raise CheckpointError(
            f"{encoder} gives captions {width} channels, and the transformer takes {channels}: it is another model's "
            "text encoder; download the one of this checkpoint"
        )
    if len(words) > size:
        raise CheckpointError(
            f"the tokenizer in {tokenizer} knows {len(words)} tokens and the encoder {size}: they belong to different "
            "models; download both of one"
        )
    return loaded, words
