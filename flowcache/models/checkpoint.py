"""Safetensors checkpoints, whole or in shards; what is wrong with them is known from their headers, before loading."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from flowcache.models.device import usable_device

INDEX_NAMES = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json")
FILE_NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")
_SHOWN_KEYS = 5
# Names of types in headers; what is not here (such as the official fp8) this library does not run.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged or of another model; the message says which and what to do."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint, as a file's header has it.

    Attributes:
        path, name: the file, and the tensor's name in it.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


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
                packed = all((directory / f"{shard}.zst").is_file() for shard in missing)
                raise CheckpointError(
                    f"{directory} lacks {len(missing)} of {len(shards)} shards ({shortened(missing)}); "
                    + ("unpack them with `zstd -d *.zst`" if packed else "finish the download")
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
    pickled = sorted(path.name for path in directory.glob("*") if path.suffix in PICKLE_SUFFIXES)
    if pickled:
        raise CheckpointError(
            f"{directory} holds pickled weights ({shortened(pickled)}), which can run code when they are opened and "
            "are refused; download the checkpoint's safetensors files, or convert these where you trust them"
        )
    raise CheckpointError(
        f"no weights in {directory}: expected {FILE_NAMES[0]}, {FILE_NAMES[1]} or a sharded index beside them; "
        "check the path, or download the checkpoint there"
    )


def around(directory: Path) -> list[Path]:
    """Where parts of a checkpoint may lie: the directory and two above it, then the same of what links lead to.

    Links to files lead to no checkpoint: in the Hugging Face cache all lie side by side, under no name of their own.
    """
    targets = [path.resolve().parent for path in sorted(directory.iterdir()) if path.is_symlink() and path.is_dir()]
    homes = [directory.absolute(), directory.resolve(), *targets]
    return [directory, *dict.fromkeys(folder for home in homes for folder in (home, *home.parents[:2]))]


def part_files(directory: Path) -> list[Path]:
    """The files that a network, text encoder or tokenizer is loaded from: settings, vocabulary, weights, their index.

    What is missing or wrong is left out: loading tells.
    """
    try:
        weights = list(find_weights(directory))
    except CheckpointError:
        weights = sorted(directory.glob("pytorch_model*"))  # as T5 is published, with its index
    names = ("config.json", *INDEX_NAMES, *TOKENIZER_FILES, *_TOKENIZER_SETTINGS)
    return [path for path in (*(directory / name for name in names), *weights) if path.is_file()]


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


def read_headers(directory: Path, rename: Callable[[str], str] | None = None) -> dict[str, Stored]:
    """Every tensor of a checkpoint directory by its key, ``rename``d; no weights are read.

    Raises CheckpointError for files that are missing, damaged or cut short, and for tensors that an index names and
    its shards lack.
    """
    return {
        name if rename is None else rename(name): tensor
        for path, names in find_weights(directory).items()
        for name, tensor in file_headers(path, names).items()
    }


def file_headers(path: Path, names: Collection[str] | None = None) -> dict[str, Stored]:
    """The tensors of a safetensors file by its own names, or those ``names`` that its index has for it.

    Raises CheckpointError.
    """
    stored: dict[str, Stored] = {}
    try:
        # It compares the header with the file's length. Unlike torch, numpy has no part in it before a tensor is
        # read: torch maps the file as if to write, which the kernel refuses for more than there is memory.
        with safe_open(path, framework="numpy") as file:
            held = file.keys()
            absent = sorted(set(names or ()) - set(held))
            if absent:
                raise CheckpointError(
                    f"{path} lacks {len(absent)} tensors that its index names ({shortened(absent)}); "
                    "index and shards are of different checkpoints: download both again"
                )
            for name in held if names is None else names:
                header = file.get_slice(name)
                if header.get_dtype() not in DTYPES:
                    raise unknown_type(path, name, header.get_dtype())
                stored[name] = Stored(path, name, tuple(header.get_shape()), DTYPES[header.get_dtype()])
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from error
    return stored


def unknown_type(path: Path, name: str, dtype: str) -> CheckpointError:
    """A tensor is of a type that is not run, such as the official fp8."""
    return CheckpointError(
        f"{path} holds {name} as {dtype}, which this library does not run; use the release in bfloat16"
    )


def damaged(path: Path, error: Exception) -> CheckpointError:
    """What is wrong with a file of weights that cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError:
        return CheckpointError(f"{path} cannot be read ({error}); change its permissions, or download it again")
    if start.startswith(b"version https://git-lfs"):
        return CheckpointError(f"{path} is a Git LFS pointer and not the weights; fetch them with `git lfs pull`")
    if start.startswith((b"PK", b"\x80")) and path.suffix not in PICKLE_SUFFIXES:
        return CheckpointError(
            f"{path} is a pickle by the name of safetensors, which is not opened; download the real file again"
        )
    return CheckpointError(f"{path} is damaged or cut short ({error}); download it again")


def check_weights(module: nn.Module, directory: Path, rename: Callable[[str], str] | None = None) -> dict[str, Stored]:
    """The headers of a checkpoint directory, which fit ``module``; CheckpointError where they do not."""
    stored = read_headers(directory, rename)
    problem = mismatch({key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}, stored)
    if problem:
        raise CheckpointError(
            f"the weights in {directory} do not fit the configuration: {problem}. "
            "Use the config.json that belongs to these weights"
        )
    return stored


def load_weights(
    module: nn.Module,
    directory: Path,
    device: torch.device | str,
    keep_dtype: bool = True,
    rename: Callable[[str], str] | None = None,
) -> None:
    """Load a checkpoint directory into ``module`` and move it to ``device``.

    Keys and shapes must match exactly; that is known before a weight is read. Each tensor goes to the device by itself
    and takes the type of the module's own parameter there (the network keeps some parts in float32 whatever the rest)
    unless ``keep_dtype`` is False, which keeps the file's: host memory holds one file's pages at most. ``rename`` turns
    the file's names into the module's. The module may be on the meta device: tensors are assigned, not copied. Raises
    CheckpointError, and ValueError for a device that is not there.
    """
    device = usable_device(device)
    fill(module, check_weights(module, directory, rename), device, keep_dtype)


def read_safetensors(path: Path, names: Collection[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Some tensors of a file, one at a time, on ``device``. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name in names:
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from error


def fill(
    module: nn.Module,
    stored: Mapping[str, Stored],
    device: torch.device,
    keep_dtype: bool = True,
    read: Callable[[Path, Collection[str], torch.device], Iterable[tuple[str, Tensor]]] = read_safetensors,
) -> None:
    """Load tensors that were found to fit (``mismatch``) into ``module``; otherwise as ``load_weights``.

    Args:
        stored: by the module's names, of which several may be of one tensor.
        read: of a file's tensors.
    """
    own = module.state_dict()
    files: dict[Path, dict[str, list[str]]] = {}
    for key, tensor in stored.items():
        files.setdefault(tensor.path, {}).setdefault(tensor.name, []).append(key)
    found: dict[str, Tensor] = {}
    for path, keys in files.items():
        for name, tensor in read(path, keys, device):
            for key in keys[name]:
                found[key] = tensor.to(own[key].dtype if keep_dtype else stored[key].dtype)
            del tensor  # it would keep the file's pages
    module.load_state_dict(found, strict=True, assign=True)
    module.to(device).eval().requires_grad_(False)


def weights_bytes(modules: Mapping[str, nn.Module | None]) -> dict[str, int]:
    """What modules' weights take, by name; those that are None are left out."""
    return {
        name: sum(parameter.nbytes for parameter in module.parameters())
        for name, module in modules.items()
        if module is not None
    }


def mismatch(
    expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, Stored], optional: Collection[str] = ()
) -> str | None:
    """How a checkpoint's tensors differ from the shapes expected, in one line; None if they do not.

    Keys that are ``optional`` may be missing (another name of a tensor that is there).
    """
    problems = []
    missing = expected.keys() - stored.keys() - set(optional)
    for title, keys in (("missing", missing), ("unexpected", stored.keys() - expected.keys())):
        if keys:
            problems.append(f"{len(keys)} {title} keys ({shortened(sorted(keys))})")
    wrong = [key for key in sorted(expected.keys() & stored.keys()) if expected[key] != stored[key].shape]
    if wrong:
        first = wrong[0]
        problems.append(
            f"{len(wrong)} wrong shapes (first {first}: expected {list(expected[first])}, "
            f"found {list(stored[first].shape)})"
        )
    return "; ".join(problems) or None


def shortened(names: list[str]) -> str:
    """The first of some names, in one line."""
    return ", ".join(names[:_SHOWN_KEYS]) + (", ..." if len(names) > _SHOWN_KEYS else "")


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
        shown = shortened(sorted(wrong))
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
