"""Names that nobody knows, and what was probably meant."""

from __future__ import annotations

import difflib


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """'did you mean ...?' with the nearest known name, and all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"{guess}there are {', '.join(sorted(known))}"
