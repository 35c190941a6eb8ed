"""A part of a method: a dataclass whose fields are its options, checked in ``__post_init__``.

Whatever a part remembers while a video is made are plain attributes, also set in ``__post_init__``. Every generation
works with a ``fresh`` copy, so that nothing survives into the next video.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from flowcache.calibration import Calibration


@dataclass(kw_only=True)
class Part:
    """Attributes: ``calibrated`` are the calibrations that it follows, each given by the option that the calibration
    names: as a file, which is read, as what a file holds, or None for none."""

    calibrated: ClassVar[tuple[type[Calibration], ...]] = ()

    def __post_init__(self) -> None:
        """Check the options, and begin with nothing remembered. Raises ValueError."""
        for kind in self.calibrated:
            setattr(self, kind.own_option(), kind.given(getattr(self, kind.own_option())))

    def fresh(self) -> Self:
        """The same options, nothing remembered."""
        return replace(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process goes what it is; what it remembers need not fit through."""
        return _of_options, (type(self), self.options)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy stays in this process, with what is remembered."""
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(deepcopy(self.__dict__, memo))
        return copied

    @property
    def options(self) -> dict[str, Any]:
        return {option.name: getattr(self, option.name) for option in fields(self)}


def _of_options(kind: type[Part], options: dict[str, Any]) -> Part:
    return kind(**options)
