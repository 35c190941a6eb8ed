"""The list of conf/results.yaml: every committed file of a result, and the commands that make it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from experiments.job.errors import BadInput
from experiments.job.groups import CONF
from experiments.job.names import nearest

LIST = CONF / "results.yaml"
FORMS = {"tables": (".md", ".tex", ".csv"), "figures": (".png", ".svg")}  # of a file without an ending, by its folder
SWEEP = "sweep"
_KEYS = ("names", "models", "commands", "files", "reads", "counted", "to_come")
_PLACE = re.compile(r"<(\w+)>")


@dataclass(frozen=True)
class Result:
    """One result: of one name and, where there are any, one model.

    Attributes:
        commands: in order, each the words behind ``python -m experiments.``, or of another package behind
            ``python -m``, as they are run.
        files: what they make, from the repository's folder.
        reads: files and folders, likewise, that it is made again for.
        counted: whether nothing is run or timed for it.
        is_to_come: whether its files are not here yet.
    """

    name: str
    model: str | None
    commands: tuple[tuple[str, ...], ...]
    files: tuple[str, ...]
    reads: tuple[str, ...] = ()
    counted: bool = False
    is_to_come: bool = False

    @property
    def label(self) -> str:
        """'field magi'."""
        return self.name if self.model is None else f"{self.name} {self.model}"

    @property
    def sweeps(self) -> tuple[tuple[str, ...], ...]:
        """The arguments of each of its sweeps, which make the records that it is drawn from."""
        return tuple(words[1:] for words in self.commands if words[0] == SWEEP)


def read_results(path: Path = LIST) -> list[Result]:
    """All of a list, in its order. Raises BadInput for what cannot be read as one."""
    results = [result for item in OmegaConf.to_container(OmegaConf.load(path)) for result in _results_of(item)]
    for kind, told in (("result", [r.label for r in results]), ("file", [f for r in results for f in r.files])):
        twice = [each for place, each in enumerate(told) if each in told[:place]]
        if twice:
            raise BadInput(f"{path.name}: the {kind} {twice[0]} is there twice; leave one of them")
    return results


def chosen(results: Sequence[Result], names: Sequence[str] = (), model: str | None = None) -> list[Result]:
    """Those of some names (all, without any) and of a model. One that is of several models is of none.

    Raises BadInput for an unknown name or model, and where nothing is left.
    """
    known = list(dict.fromkeys(result.name for result in results))
    models = list(dict.fromkeys(result.model for result in results if result.model))
    for name in names:
        if name not in known:
            raise BadInput(f"only={','.join(names)}: there is no result {name!r}; {nearest(name, known)}")
    if model is not None and model not in models:
        raise BadInput(f"model={model}: there is no result of it; {nearest(model, models)}")
    left = [r for r in results if (not names or r.name in names) and model in (None, r.model)]
    if not left:
        raise BadInput(f"there is no {' or '.join(names)} of model={model}; leave model= out")
    return left


def _results_of(item: Mapping[str, Any]) -> Iterable[Result]:
    """Raises BadInput."""
    if unknown := [key for key in item if key not in _KEYS]:
        raise BadInput(f"{LIST.name}: {unknown[0]!r} is no key of an item; {nearest(unknown[0], _KEYS)}")
    if lacking := [key for key in ("names", "commands", "files") if not item.get(key)]:
        raise BadInput(f"{LIST.name}: the item {item} lacks {lacking[0]}")
    here, to_come = item.get("models", []), item.get("to_come", [])
    for name in item["names"]:
        for model in [*here, *to_come] or [None]:
            filling = {"name": name, **({} if model is None else {"model": model})}
            yield Result(
                name,
                model,
                tuple(_command(_filled(command, filling), model) for command in item["commands"]),
                tuple(file for stem in item["files"] for file in _files(_filled(stem, filling))),
                tuple(_filled(path, filling) for path in item.get("reads", [])),
                item.get("counted", False),
                model in to_come,
            )


def _command(text: str, model: str | None) -> tuple[str, ...]:
    words = text.split()
    if model is not None:
        words.append(f"model={model}")
    if words[0] != SWEEP and "." not in words[0]:
        words.append("publish=true")
    return tuple(words)


def _files(path: str) -> list[str]:
    folder, name = Path(path).parent.name, Path(path).name
    return [path] if "." in name else [path + form for form in FORMS[folder]]


def _filled(text: str, filling: Mapping[str, str]) -> str:
    """With what stands for <name> and <model>. Raises BadInput for another."""
    if unknown := [place for place in _PLACE.findall(text) if place not in filling]:
        raise BadInput(f"{LIST.name}: nothing is known of <{unknown[0]}> in {text}; there are {', '.join(filling)}")
    return _PLACE.sub(lambda found: filling[found[1]], text)
