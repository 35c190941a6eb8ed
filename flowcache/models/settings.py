"""A model's sampling settings with some of them exchanged, under their own names."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

Settings = TypeVar("Settings")


def replaced(sampling: Settings, settings: Mapping[str, Any], model: str) -> Settings:
    """A dataclass of settings with some exchanged, those that are None left alone.

    Raises ValueError for an unknown name; ``model`` is whose settings they are.
    """
    known = [field.name for field in dataclasses.fields(sampling)]
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            guess = f"did you mean {close[0]}? " if close else ""
            raise ValueError(f"{model} has no setting {name!r}; {guess}there are {', '.join(known)}")
    return dataclasses.replace(sampling, **{name: value for name, value in settings.items() if value is not None})
