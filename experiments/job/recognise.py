"""``checkpoint=<directory or file>`` alone: its files tell model= and setting=, which are added before Hydra reads."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from experiments.job.errors import BadInput
from experiments.job.groups import groups
from experiments.job.paths import inside_root

if TYPE_CHECKING:
    from flowcache.models.recognised import Recognised

FULL, SMALL = "paper", "embedded"  # settings, of networks as released and of small ones
_OURS = "flowcache.models."  # loaders whose checkpoints are told apart; another is its author's business


def recognised(arguments: list[str]) -> list[str]:
    """Arguments ``key=value`` with model and setting of the checkpoint that they name, where those are not given.

    What is added is said on stderr. Several checkpoints (of a multirun) must be alike. Raises BadInput for files that
    are of no model, or of another than the one given.
    """
    paths = _texts(arguments, "checkpoint")
    if not paths or any(argument.startswith("model.loader=") for argument in arguments):
        return arguments
    from flowcache.checkpoints import recognise  # imported late: without a checkpoint nothing needs torch here
    from flowcache.models.checkpoint import CheckpointError

    models = _texts(arguments, "model")
    found: dict[str, Recognised] = {}
    try:
        for path in paths:
            found[path] = recognise(inside_root(path))
    except CheckpointError as error:
        if models:  # whose loader says more, or takes what nobody here knows
            return arguments
        raise BadInput(str(error)) from error
    for path, one in found.items():
        for model in models:
            _check_model(path, one, model)
    added = {path: _missing(one, arguments) for path, one in found.items()}
    first = added[paths[0]]
    if any(choices != first for choices in added.values()):
        told = ", ".join(f"{path} ({one.name})" for path, one in found.items())
        raise BadInput(f"checkpoint= names checkpoints that need different choices: {told}; run a command for each")
    if first:
        print(f"checkpoint: {found[paths[0]].name} -> {' '.join(first)}", file=sys.stderr)
    place = max(place for place, argument in enumerate(arguments) if argument.startswith("checkpoint=")) + 1
    return [*arguments[:place], *first, *arguments[place:]]  # beside it: Hydra takes none that -m parts from the others


def _missing(found: Recognised, arguments: list[str]) -> list[str]:
    """The choices that a checkpoint makes and that the arguments do not."""
    choices = {"model": found.model}
    if found.is_full_size is not None:
        choices["setting"] = FULL if found.is_full_size else SMALL
    given = {argument.partition("=")[0] for argument in arguments}
    return [f"{key}={name}" for key, name in choices.items() if key not in given]


def _check_model(path: str, found: Recognised, model: str) -> None:
    """Refuse a model that loads another family's checkpoints. Raises BadInput."""
    from experiments.job.compose import composed

    if model not in groups()["model"].names:
        return  # which is said where names are checked
    loader = str(composed([f"model={model}"]).model.loader)
    if loader.startswith(_OURS) and not loader.startswith(f"{found.package}."):
        raise BadInput(
            f"model={model} does not fit checkpoint={path}, whose files are those of {found.name}; give "
            f"model={found.model}, or leave model= out"
        )


def _texts(arguments: list[str], key: str) -> list[str]:
    """The texts that an option is given, several in a multirun; none where it is something else, or cannot be read."""
    given = [argument for argument in arguments if argument.startswith(f"{key}=")]
    if not given:
        return []
    try:
        override = OverridesParser.create().parse_override(given[-1])
        values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    except HydraException:
        return []
    return [value for value in map(_unquoted, values) if value]


def _unquoted(value: object) -> str:
    return value.strip("'\"") if isinstance(value, str) else ""
