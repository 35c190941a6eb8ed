"""Checks of options' values, in one wording: what was wrong, what is expected."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def check_threshold(threshold: float, name: str = "threshold", zero: str = "never reuses") -> None:
    """Refuse a threshold that is not a finite number of at least 0; ``zero`` says what 0 does."""
    if not (is_finite(threshold) and threshold >= 0):
        raise ValueError(f"{name}={threshold!r} must be a finite number of at least 0 (0 {zero})")


def check_share(**shares: float) -> None:
    """Refuse a number that does not lie between 0 and 1."""
    for name, value in shares.items():
        if not (is_number(value) and 0 <= value <= 1):
            raise ValueError(f"{name}={value!r} must be a number from 0 to 1")


def check_counts(least: int = 1, **counts: int) -> None:
    """Refuse what is not a whole number of at least ``least``. Raises ValueError."""
    for name, value in counts.items():
        if not is_count(value, least):
            raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")


def check_warmup(warmup_steps: int) -> None:
    """Refuse a warm-up that is not a whole number of at least 0."""
    check_counts(0, warmup_steps=warmup_steps)


def check_warmup_fits(warmup_steps: int, most: int, of_what: str) -> None:
    """Refuse a warm-up that is longer than all there is: such a method never reuses, and is vanilla by another name."""
    if warmup_steps > most:
        raise ValueError(
            f"warmup_steps={warmup_steps} is more than the {most} {of_what}, so that nothing would ever be reused; "
            f"choose 0 to {most}"
        )


def check_switches(**switches: bool) -> None:
    """Refuse a switch that is neither true nor false: any text, "no" too, would count as true."""
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} must be true or false")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse what is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose {either(choices)}")


def either(choices: Sequence[str | int]) -> str:
    """Choices in words: "'a', 'b' or 'c'"."""
    *others, last = map(repr, choices)
    return f"{', '.join(others)} or {last}" if others else last


def is_number(value: object) -> bool:
    """A number, which true and false are not; infinity and NaN are."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_finite(value: object) -> bool:
    """A number that is neither infinite nor NaN."""
    return is_number(value) and math.isfinite(value)


def is_count(value: object, least: int = 1) -> bool:
    """A whole number of at least ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
