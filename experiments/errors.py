"""Failures a user can act on; the command line prints their message alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class BadInput(ValueError):
    """The request is wrong: nothing was started. Exit code 2."""


@dataclass(frozen=True)
class Failure:
    """A video that could not be made."""

    method_name: str
    prompt: str
    error: Exception


class RunFailed(Exception):
    """Some videos could not be made; the others were. Its cause is the first failure's error."""

    def __init__(self, failures: Sequence[Failure]) -> None:
        first = failures[0]
        super().__init__(
            f"{len(failures)} of the videos could not be made, the first {first.method_name}: {first.prompt!r} "
            f"({type(first.error).__name__}: {first.error}); the same command tries them again"
        )
        self.__cause__ = first.error
