"""What ``--help`` prints: of commands their modules' docstrings, of run.py options and choices, explained by the
comments in conf/."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.job.errors import BadInput, plain
from experiments.job.groups import CONF, config_files, groups
from experiments.job.names import nearest
from experiments.job.paths import ROOT

WIDTH, COLUMN = 100, 28
_LINE = re.compile(r"(?P<indent> *)(?P<name>\w+):(?: +(?P<value>[^#\s].*?))??(?: +# (?P<meaning>.*))?$")
_MORE = re.compile(r" +# (?P<meaning>.*)$")
_OF_THE_METHOD = ("reuse", "forecast", "kv")
_NOT_SET = ("defaults", "hydra", "name", "_target_")  # of a file's first level


@dataclass
class Option:
    """A key of a file of conf/, with its default as it is written there, and what the comment beside it says."""

    key: str
    default: str
    meaning: str

    @property
    def typed(self) -> str:
        """As on the command line; of a key of settings, that it is one."""
        return f"{self.key}={self.default}" if self.default else f"{self.key}.*"


def options_of(path: Path, prefix: str = "") -> list[Option]:
    """The options that a file sets, in its order; a key of settings stands before them if a comment explains it."""
    found: list[Option] = []
    above: list[tuple[int, str]] = []  # keys that the line is inside, with their indentation
    for line in path.read_text(encoding="utf-8").splitlines():
        if (more := _MORE.match(line)) and found:
            found[-1].meaning += f" {more['meaning']}"
        if not (option := _LINE.match(line)):
            continue
        indent = len(option["indent"])
        above = [key for key in above if key[0] < indent]
        names = [name for _, name in above] + [option["name"]]
        above.append((indent, option["name"]))
        if names[0] not in _NOT_SET and names[-1] != "_target_" and (option["value"] or option["meaning"]):
            found.append(Option(prefix + ".".join(names), option["value"] or "", option["meaning"] or ""))
    return found


def documentation(module: str) -> str:
    """The docstring of a module of this repository, by its dotted name; it is not imported for it."""
    source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


def run_help(description: str, arguments: Sequence[str]) -> str:
    """Of run.py, and of the choices that the arguments make. Raises BadInput for unknown ones."""
    chosen = [argument.partition("=") for argument in arguments if argument.partition("=")[0] in groups()]
    lines = [plain(description), "", "Choices: each name is a file conf/<choice>/<name>.yaml, which explains it"]
    for key, group in groups().items():
        # What the method names is its own choice, whatever stands in config.yaml before it is read.
        default = "<the method's>" if key in _OF_THE_METHOD else group.default
        lines += _entry(f"{key}={default}", ", ".join(group.names))
    lines += ["", "Options, with their defaults"]
    for option in options_of(CONF / "config.yaml"):
        lines += _entry(option.typed, option.meaning)
    for key, _, name in chosen:
        lines += _of_choice(key, name)
    launchers = ", ".join(path.stem for path in config_files("hydra/launcher"))
    lines += [
        "",
        *_entry("python run.py method=every_k --help", "explains the options of a choice too, here method.*"),
        *_entry("python run.py --cfg job", "every option of a job and its value; --hydra-help: what else Hydra can do"),
        *_entry("python run.py -m seed=1,2", f"a job for each value; beside each other: hydra/launcher={launchers}"),
        *_entry('eval "$(python run.py -sc install=bash)"', "completes choices and options with the tab key"),
    ]
    return "\n".join(lines)


def without_fixed_groups(completions: str) -> str:
    """Hydra's completions without the groups that follow from others and are no choice, such as tuned=."""
    kept = [word for word in completions.split() if not _is_fixed(word)]
    return " ".join(kept)


def _is_fixed(word: str) -> bool:
    group, equals, _ = word.partition("=")
    return bool(equals) and group not in groups() and (CONF / group).is_dir()


def _of_choice(key: str, name: str) -> Iterator[str]:
    """What a file of a group says of itself, and its options."""
    names = groups()[key].names
    if name not in names:
        raise BadInput(f"unknown {key} {name!r}; {nearest(name, names)}")
    path = CONF / key / f"{name}.yaml"
    yield from ("", f"Options of {key}={name}")
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        yield f"  {line.lstrip('# ')}"
    for option in options_of(path, f"{key.replace('/', '.')}."):
        yield from _entry(option.typed, option.meaning)


def _entry(what: str, meaning: str) -> Iterator[str]:
    """``what`` and beside it, or below where there is no room, what it means."""
    lines = textwrap.wrap(meaning, WIDTH - COLUMN - 2)
    first = lines.pop(0) if lines and len(what) + 2 <= COLUMN else ""
    yield f"  {what.ljust(COLUMN)}{first}".rstrip()
    yield from (" " * (COLUMN + 2) + line for line in lines)
