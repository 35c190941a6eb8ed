"""What a checkpoint directory holds and what is wrong with it, told from configurations and headers alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowcache.models.checkpoint import (
    PICKLE_SUFFIXES,
    TOKENIZER_FILES,
    CheckpointError,
    Stored,
    find_weights,
    mismatch,
    read_headers,
)
from flowcache.models.pickled import pickled_headers

TIED = ("shared.weight", "encoder.embed_tokens.weight")  # one tensor under two names, of which files hold either
_IGNORED = ("decoder.", "lm_head.")  # of a text encoder published with its decoder


@dataclass
class Part:
    """One network of a checkpoint.

    Attributes:
        tensors: by the name that the network has for them.
        problems: one line each.
    """

    name: str
    directory: Path
    tensors: dict[str, Stored] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel for tensor in self.tensors.values())

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def dtypes(self) -> dict[str, int]:
        """Tensors of each type."""
        return dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in self.tensors.values()))

    def groups(self) -> Iterator[tuple[str, tuple[int, ...], str, int]]:
        """Tensors alike in all layers as one: name with * for the layer, shape, type, how many."""
        counted: Counter[tuple[str, tuple[int, ...], str]] = Counter()
        for key, tensor in self.tensors.items():
            name = re.sub(r"(blocks?|layers)\.\d+\.", r"\1.*.", key, count=1)
            counted[name, tensor.shape, str(tensor.dtype).removeprefix("torch.")] += 1
        for (name, shape, dtype), count in sorted(counted.items()):
            yield name, shape, dtype, count


@dataclass
class Inventory:
    """A checkpoint as found.

    Attributes:
        name: family and release.
        settings: of sampling, by name.
        problems: those of no single part.
        notes: what a user should know that is not wrong.
    """

    name: str
    directory: Path
    settings: dict[str, Any] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def all_problems(self) -> list[str]:
        """Of the whole and of its parts, one line each."""
        return [*self.problems, *(problem for part in self.parts for problem in part.problems)]


def check_part(
    name: str,
    directory: Path,
    expected: Mapping[str, Tensor],
    problem: str | None = None,
    rename: Callable[[str], str] | None = None,
    optional: tuple[str, ...] = (),
    ignored: tuple[str, ...] = (),
) -> Part:
    """Compare a directory's headers with the tensors that a network on device "meta" has.

    Args:
        problem: already known, such as a missing configuration; nothing is then compared.
        rename: the file's names into the network's.
        optional, ignored: keys that may be missing, and beginnings of keys that nobody needs.
    """
    return check_stored(name, directory, expected, lambda: read_headers(directory, rename), problem, optional, ignored)


def check_stored(
    name: str,
    place: Path,
    expected: Mapping[str, Tensor],
    read: Callable[[], Mapping[str, Stored]],
    problem: str | None = None,
    optional: tuple[str, ...] = (),
    ignored: tuple[str, ...] = (),
) -> Part:
    """As ``check_part`` of what lies in a folder or file, with the headers that ``read`` gives, or its CheckpointError.

    They are by the network's names.
    """
    part = Part(name, place)
    try:
        stored = read()
    except CheckpointError as error:
        part.problems.append(problem or str(error))
        return part
    part.tensors = {key: tensor for key, tensor in stored.items() if not key.startswith(ignored)}
    shapes = {key: tuple(tensor.shape) for key, tensor in expected.items()}
    wrong = problem or mismatch(shapes, part.tensors, optional)
    if wrong:
        part.problems.append(problem or f"the {name} in {place} does not fit its configuration: {wrong}")
    return part


def check_text_encoder(name: str, directory: Path, tokenizer: Path, architecture: str, channels: int) -> Part:
    """A text encoder of transformers (``architecture``), its tokenizer, and whether its features have ``channels``."""
    import transformers

    encoder_class = getattr(transformers, architecture)
    try:
        config = encoder_class.config_class.from_pretrained(directory, local_files_only=True)
        with torch.device("meta"):
            encoder = encoder_class(config)
    except Exception as error:  # transformers raises what its parts raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if not (directory / "config.json").is_file():
            reason = "config.json is missing"
        return Part(name, directory, problems=[f"no {name} in {directory} ({reason}); download it there"])
    expected = encoder.state_dict()
    pickled = _pickles(directory)
    if pickled:

        def read() -> dict[str, Stored]:
            return {key: tensor for path in pickled for key, tensor in pickled_headers(path).items()}

        part = check_stored(name, directory, expected, read, optional=TIED, ignored=_IGNORED)
    else:
        part = check_part(name, directory, expected, optional=TIED, ignored=_IGNORED)
    return check_captions(part, tokenizer, config.d_model, channels)


def check_captions(part: Part, tokenizer: Path, width: int, channels: int) -> Part:
    """A text encoder's part with what else may be wrong: token embeddings, channels (``width``), the tokenizer."""
    if not part.problems and not any(key in part.tensors for key in TIED):
        part.problems.append(
            f"the {part.name} in {part.directory} has no token embeddings ({TIED[0]}); download it again"
        )
    if not part.problems and width != channels:
        part.problems.append(
            f"the {part.name} in {part.directory} gives features of {width} channels, and the transformer takes "
            f"{channels}; use the one that belongs to these weights"
        )
    if not any((tokenizer / file).is_file() for file in TOKENIZER_FILES):
        part.problems.append(f"no tokenizer in {tokenizer}: expected {' or '.join(TOKENIZER_FILES)}; download it there")
    return part


def _pickles(directory: Path) -> list[Path]:
    """The files of a text encoder that was published as pickles (T5-v1.1-XXL's), where there are no safetensors."""
    try:
        find_weights(directory)
    except CheckpointError:
        found = sorted(path for path in directory.glob("pytorch_model*") if path.suffix in PICKLE_SUFFIXES)
        return [] if list(directory.glob("*.safetensors*")) else found
    return []
