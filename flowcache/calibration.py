"""What a part was calibrated to on a model: a small JSON file, and where its numbers come from.

``python -m experiments.calibrate`` writes them. Times, never step numbers, carry them over to other step
counts and grids.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self


@dataclass(frozen=True, kw_only=True)
class Calibration(ABC):
    """What a file holds.

    Attributes:
        kind: what such a file is called.
        option: the option that takes one, by dotted name.
        made_by: what ``experiments.calibrate`` makes one for.
        name: of the file, without its folder and ending.
        sha256: first 16 digits of its content's.
        provenance: what it was made of: model, setting, weights, prompts, seed, fit ...
    """

    kind: ClassVar[str]
    option: ClassVar[str]
    made_by: ClassVar[str]
    name: str
    sha256: str
    provenance: Mapping[str, Any] = field(compare=False, repr=False)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Raises ValueError for a file that is not there, or holds something else."""
        path = Path(path)
        try:
            text = path.read_bytes()
            data = json.loads(text)
            own = cls.taken(data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{cls.own_option()}={str(path)!r} cannot be read as a {cls.kind} ({error}); give a file that python "
                f"-m experiments.calibrate {cls.made_by} wrote"
            ) from error
        return cls(name=path.stem, sha256=hashlib.sha256(text).hexdigest()[:16], provenance=data, **own)

    @classmethod
    @abstractmethod
    def taken(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Take its own fields out of what a file holds; the rest is provenance. Raises ValueError, KeyError or
        TypeError for what is none."""

    @classmethod
    def given(cls, value: Self | str | Path | None) -> Self | None:
        """An option's value: a file is read. Raises ValueError."""
        if isinstance(value, str | Path):
            return cls.read(value)
        if value is not None and not isinstance(value, cls):
            raise ValueError(f"{cls.own_option()}={value!r} must be the file of a {cls.kind}, or null for none")
        return value

    def described(self) -> dict[str, str]:
        """What tells it from others, wherever it lies."""
        return {self.own_option(): self.name, "sha256": self.sha256}

    @classmethod
    def own_option(cls) -> str:
        """The option's name within its part."""
        return cls.option.partition(".")[2]
