"""``python -m flowcache.checkpoints verify PATH``: what a downloaded checkpoint holds, and whether it is whole.

The family is told from the files. Only configurations and headers are read, so that it takes seconds whatever the size.
Exit codes: 0 nothing is wrong, 1 something is (one line for each), 2 bad input, such as a directory of no checkpoint.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from flowcache.models.checkpoint import CheckpointError
from flowcache.models.inventory import Inventory
from flowcache.models.magi import checkpoint as magi
from flowcache.models.recognised import Recognised

GIB = 2**30
_FILE_SUFFIXES = (".pt", ".safetensors")  # of causal Wan, which is published as single files
_PARTS = ("transformer", "vae", "text_encoder", "t5", "inference_weight")  # beginnings of folders in a checkpoint
_PART_NAMES = ("model", "diffusion_pytorch_model")  # beginnings of files in them, whole or in shards


def verify(directory: Path) -> Inventory:
    """What a checkpoint directory holds and what is wrong with it. Raises CheckpointError where it is of no family."""
    return _family(directory).verify(directory)


def loaded_files(directory: Path, **beside: Path) -> dict[str, Path]:
    """The files that a checkpoint is loaded from, by names that do not tell where they lie; no other counts as its own.

    Args:
        beside: what the family's loader takes beside it, such as an adapter, under its names.

    Raises CheckpointError where it is of no family, or of one that takes nothing of that name, and CheckpointError,
    OSError or ValueError where its configuration is wrong.
    """
    found = _family(directory).loaded_files
    if unknown := sorted(beside.keys() - inspect.signature(found).parameters.keys()):
        raise CheckpointError(f"{directory} is of a family whose checkpoints take no {unknown[0]}; leave it out")
    return found(directory, **beside)


def recognise(path: Path) -> Recognised:
    """What the checkpoint in a directory or file is: family, released network, and the model that takes it.

    Raises CheckpointError where it is of no family, which says what was looked for, and for a file out of a folder that
    is a checkpoint as a whole.
    """
    if path.is_file() and (whole := _checkpoint_around(path)) is not None:
        raise CheckpointError(f"{path} is one file of a checkpoint that is a folder; give checkpoint={whole}")
    return import_module(".recognise", _family(path).__package__).recognise(path)


def _checkpoint_around(file: Path) -> Path | None:
    """The folder of a checkpoint that a file is a part of, by its name; None of a file that is one by itself."""
    if file.suffix in _FILE_SUFFIXES and not (file.suffix == ".safetensors" and file.name.startswith(_PART_NAMES)):
        return None
    folders = [file.parent, *([file.parent.parent] if file.parent.name.startswith(_PARTS) else [])]
    for folder in reversed(folders):
        try:
            _family(folder)
        except CheckpointError:
            continue
        return folder
    return None


def _family(directory: Path) -> ModuleType:
    """The checkpoint module of the family that a directory is of. Raises CheckpointError where it is of none."""
    if not directory.is_dir() and not (directory.is_file() and directory.suffix in _FILE_SUFFIXES):
        raise CheckpointError(f"no checkpoint directory at {directory}; give the path of a downloaded checkpoint")
    if magi.is_magi(directory):
        return magi
    try:
        from flowcache.models.skyreels import checkpoint as skyreels  # diffusers is needed for these families alone
        from flowcache.models.wan import checkpoint as wan
    except ImportError as error:
        raise CheckpointError(f"{directory} is no checkpoint of MAGI-1, and {error}") from error

    looks = {wan: wan.is_wan, skyreels: skyreels.is_skyreels}
    for family, looks_like in looks.items():
        if looks_like(directory):
            return family
    tests = (magi.is_magi, *looks.values())
    inside = [path.name for path in sorted(directory.iterdir()) if path.is_dir() and any(test(path) for test in tests)]
    hint = f"; {', '.join(inside)} in it look like some" if inside else ""
    raise CheckpointError(
        f"{directory} is no checkpoint of MAGI-1 (inference_weight.distill or inference_weight, config.json), of Wan "
        "(transformer, or a published file) or of SkyReels-V2 (transformer, or config.json beside safetensors)"
        f"{hint}"
    )


def describe(inventory: Inventory) -> list[str]:
    """What was found, as lines: settings, parts, and their tensors, those alike in all layers as one."""
    lines = [f"{inventory.name}, in {inventory.directory}"]
    lines += [f"  {name}: {value}" for name, value in inventory.settings.items()]
    for part in inventory.parts:
        types = ", ".join(f"{count} {dtype}" for dtype, count in part.dtypes().items())
        count = len({tensor.path for tensor in part.tensors.values()})
        files = f"{count} file{'s' * (count != 1)}"
        lines += [
            "",
            f"{part.name}, in {part.directory}",
            f"  {len(part.tensors)} tensors ({types or 'none'}) in {files}, {part.num_parameters:,} parameters, "
            f"{part.nbytes:,} bytes ({part.nbytes / GIB:.2f} GiB)",
        ]
        lines += [
            f"  {count:>4} x {name} {list(shape)} {dtype}" if count > 1 else f"         {name} {list(shape)} {dtype}"
            for name, shape, dtype, count in part.groups()
        ]
    total = sum(part.nbytes for part in inventory.parts)
    lines += ["", f"together {total:,} bytes ({total / GIB:.2f} GiB)"]
    return lines + [f"note: {note}" for note in inventory.notes]


def main(arguments: list[str]) -> int:
    if {"--help", "-h"} & set(arguments):
        print((__doc__ or "").replace("``", "`").strip())
        return 0
    if len(arguments) != 2 or arguments[0] != "verify":
        print("usage: python -m flowcache.checkpoints verify <directory of a checkpoint>", file=sys.stderr)
        return 2
    try:
        inventory = verify(Path(arguments[1]))
    except (CheckpointError, OSError) as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    print("\n".join(describe(inventory)))
    problems = inventory.all_problems()
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    number = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    print(number if problems else "nothing is missing or wrong")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal may not show every name
    sys.exit(main(sys.argv[1:]))
