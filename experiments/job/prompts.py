"""A job's prompts: one, a list, or a file of them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from experiments.job.errors import BadInput
from experiments.job.paths import inside_root
from experiments.job.quoting import typed
from experiments.job.units import counted

MOST_PROMPT_CHARACTERS = 10_000  # no text encoder here reads more than 800 tokens of them
COLUMN = "prompt"


def read_prompts(config: DictConfig) -> tuple[str, ...]:
    """The job's prompts, and of them the first ``num_prompts``. Raises BadInput."""
    source = config.prompts if config.prompts is not None else config.setting.prompts
    if source is None:
        raise BadInput(f"setting={config.setting.name} has no prompts of its own; give prompts=<file with one a line>")
    prompts = _all_prompts(source)
    if not prompts:
        raise BadInput(f"there is no prompt in {source!r}; write one a line")
    for number, prompt in enumerate(prompts, start=1):
        _check_prompt(prompt, number)
    wanted = config.num_prompts
    if wanted is None and config.prompts is None:
        wanted = config.setting.num_prompts
    if config.debug:
        wanted = 1
    if wanted is not None and (not isinstance(wanted, int) or isinstance(wanted, bool)):
        raise BadInput(f"num_prompts={wanted!r} must be a whole number; choose {_up_to(len(prompts))}")
    if wanted is not None and not 1 <= wanted <= len(prompts):
        there = "there is" if len(prompts) == 1 else "there are"
        raise BadInput(
            f"num_prompts={wanted} but {there} {counted(len(prompts), 'prompt')}; choose {_up_to(len(prompts))}"
        )
    return tuple(prompts[:wanted])


def tabled_prompts(config: DictConfig) -> tuple[str, ...] | None:
    """The prompts that a table of the configuration is of: those given, or an embedded setting's whole list; the first
    ``num_prompts`` of them, where that is given. None where no list is meant."""
    source = config.prompts if config.prompts is not None or not config.setting.embedded else config.setting.prompts
    return None if source is None else tuple(_all_prompts(source)[: config.num_prompts])


def _up_to(number: int) -> str:
    return "1" if number == 1 else f"1 to {number}"


def _all_prompts(source: Any) -> list[Any]:
    if isinstance(source, ListConfig):
        return OmegaConf.to_container(source, resolve=True)
    if not isinstance(source, str):
        raise BadInput(f"prompts={source} must be a text file, one prompt, or a list")
    if not source.strip():
        return []
    if len(source) > MOST_PROMPT_CHARACTERS or "\0" in source:  # no path
        return [source]
    path = inside_root(source)
    if os.path.isfile(path):  # Path.is_file raises for a text longer than a name may be
        return _read(path, source)
    if os.path.isdir(path):
        raise BadInput(f"no prompt file at {source}, which is a folder; give a file in it{_or_caption(source)}")
    if os.path.exists(path) or _looks_like_a_path(source):
        raise BadInput(
            f"no prompt file at {source}; give an existing text file with one prompt a line{_or_caption(source)}"
        )
    return [source]


def _or_caption(source: str) -> str:
    return f"; if it is a caption, give {typed('prompts', source, as_list=True)}"


def _looks_like_a_path(source: str) -> bool:
    """What is there would be read; of the rest, this says what nobody writes as a caption."""
    if source.startswith(("/", "./", "../", "~")) or Path(source).suffix.lower() in READERS.keys() - {""}:
        return True
    is_name = source.isascii() and not any(map(str.isspace, source))
    return is_name and (re.search(r"[/\\_]|\.\w+$", source) is not None)


def _read(path: Path, source: str) -> list[Any]:
    """The entries of a file by its kind. Raises BadInput."""
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise BadInput(
            f"prompts={source} is of a kind that is not read; give a .txt file with one prompt a line, or a .csv, "
            f".tsv, .json or .jsonl file with a {COLUMN!r} in every entry"
        )
    try:
        entries = list(read(path.read_text(encoding="utf-8-sig")))
    except (OSError, UnicodeError) as error:
        raise BadInput(f"prompts={source} cannot be read as UTF-8 text ({error}); write one prompt a line") from error
    except (ValueError, csv.Error) as error:
        raise BadInput(f"prompts={source}: {error}") from error
    return [entry.strip() if isinstance(entry, str) else entry for entry in entries]


def _of_lines(text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.lstrip().startswith("#"):
            raise ValueError(
                f"line {number} begins with #, and comments are not read; take it out, or write captions that begin so "
                "into a .json file, a list of texts"
            )
        if line.strip():
            yield line


def _of_table(text: str, delimiter: str) -> Iterator[str]:
    rows = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    header = next(rows, [])
    names = [cell.strip().lower() for cell in header]
    if names.count(COLUMN) != 1:
        raise ValueError(
            f"its first line must name one column {COLUMN!r}, and names {', '.join(map(repr, header)) or 'nothing'}"
        )
    for row in rows:
        if row and len(row) != len(header):
            raise ValueError(
                f"line {rows.line_num} has {counted(len(row), 'cell')} and the first line {len(header)}; put a prompt "
                "that holds a comma or a tab in double quotes"
            )
        if row:
            yield row[names.index(COLUMN)]


def _of_csv(text: str) -> Iterator[str]:
    return _of_table(text, ",")


def _of_tsv(text: str) -> Iterator[str]:
    return _of_table(text, "\t")


def _of_json(text: str) -> Iterator[Any]:
    entries = _parsed(text, "it")
    if not isinstance(entries, list):
        raise ValueError(f"it must be a list of texts, or of objects with a {COLUMN!r}")
    return map(_of_entry, entries)


def _of_json_lines(text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _of_entry(_parsed(line, f"line {number}"))


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is no JSON ({error})") from error


def _of_entry(entry: Any) -> Any:
    if isinstance(entry, dict) and COLUMN not in entry:
        raise ValueError(f"every entry must have a {COLUMN!r}; one has {', '.join(map(repr, entry)) or 'nothing'}")
    return entry[COLUMN] if isinstance(entry, dict) else entry


# By what a file's name ends in.
READERS: dict[str, Callable[[str], Iterator[Any]]] = {
    "": _of_lines,
    ".txt": _of_lines,
    ".csv": _of_csv,
    ".tsv": _of_tsv,
    ".json": _of_json,
    ".jsonl": _of_json_lines,
}


@lru_cache(maxsize=8)  # a sweep's jobs have their prompts in common
def refuse_unreadable(prompts: tuple[str, ...], check: str | None) -> None:
    """Refuse prompts that a model's own check, named by its configuration, says it cannot read. Raises BadInput."""
    if check is None:
        return
    try:
        check_prompt = get_object(check)
    except Exception as error:  # whatever importing it raises
        raise BadInput(
            f"model.prompt_check={check!r} cannot be imported ({error}); give a function, or null"
        ) from error
    for number, prompt in enumerate(prompts, start=1):
        try:
            check_prompt(prompt)
        except ValueError as error:
            raise BadInput(f"prompt {number}: {error}") from error


def _check_prompt(prompt: Any, number: int) -> None:
    """Refuse what no caption is: it would steer a terminal, or be cut to a fraction by every text encoder."""
    if not isinstance(prompt, str):
        raise BadInput(
            f"prompt {number} is {json.dumps(prompt)} and no text; put it in double quotes if it is a caption"
        )
    if not prompt.strip():
        raise BadInput(f"prompt {number} is empty; say what the video shows")
    if len(prompt) > MOST_PROMPT_CHARACTERS:
        raise BadInput(f"prompt {number} has {len(prompt)} characters; shorten it to {MOST_PROMPT_CHARACTERS}")
    for place, character in enumerate(prompt, start=1):
        if unicodedata.category(character) in ("Cc", "Cs") and character != "\t":
            raise BadInput(
                f"prompt {number} holds the control character U+{ord(character):04X} at place {place}; write plain text"
            )
