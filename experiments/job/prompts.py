"""A job's prompts: one, a list, or a file of them."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from experiments.job.errors import BadInput
from experiments.job.paths import inside_root

MOST_PROMPT_CHARACTERS = 10_000  # no text encoder here reads more than 800 tokens of them


def read_prompts(config: DictConfig) -> tuple[str, ...]:
    """The job's prompts: a list, one prompt, or a file with one a line; then the first ``num_prompts`` of them."""
    source = config.prompts if config.prompts is not None else config.setting.prompts
    if source is None:
        raise BadInput(f"setting={config.setting.name} has no prompts of its own; give prompts=<file with one a line>")
    prompts = [prompt for prompt in _listed_prompts(source) if prompt.strip()]
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
        raise BadInput(f"num_prompts={wanted!r} must be a whole number; choose 1 to {len(prompts)}")
    if wanted is not None and not 1 <= wanted <= len(prompts):
        raise BadInput(f"num_prompts={wanted} but there are {len(prompts)} prompts; choose 1 to {len(prompts)}")
    return tuple(prompts[:wanted])


def _listed_prompts(source: Any) -> list[str]:
    if isinstance(source, ListConfig):
        return [str(prompt) for prompt in source]
    if not isinstance(source, str):
        raise BadInput(f"prompts={source} must be a text file, one prompt, or a list")
    if len(source) > MOST_PROMPT_CHARACTERS or "\0" in source:  # no path
        return [source]
    path = inside_root(source)
    if os.path.isfile(path):  # Path.is_file raises for a text longer than a name may be
        try:
            return [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
        except (OSError, UnicodeError) as error:
            raise BadInput(
                f"prompts={source} cannot be read as UTF-8 text ({error}); write one prompt a line"
            ) from error
    looks_like_a_path = " " not in source and source.startswith(("/", "./", "../", "~"))
    if looks_like_a_path or Path(source).suffix in (".txt", ".csv", ".json"):
        raise BadInput(f"no prompt file at {source}; give an existing text file with one prompt a line")
    return [source]


def _check_prompt(prompt: str, number: int) -> None:
    """Refuse what no caption is: it would steer a terminal, or be cut to a fraction by every text encoder."""
    if len(prompt) > MOST_PROMPT_CHARACTERS:
        raise BadInput(f"prompt {number} has {len(prompt)} characters; shorten it to {MOST_PROMPT_CHARACTERS}")
    for place, character in enumerate(prompt, start=1):
        if unicodedata.category(character) in ("Cc", "Cs") and character != "\t":
            raise BadInput(
                f"prompt {number} holds the control character U+{ord(character):04X} at place {place}; write plain text"
            )
