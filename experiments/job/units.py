"""Counts and amounts of compute as people read them."""

from __future__ import annotations

FLOP_UNITS = (("PFLOPs", 10**15), ("TFLOPs", 10**12), ("GFLOPs", 10**9), ("MFLOPs", 10**6))


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """'1 video', '2 videos', '1,920 frames'; ``plural`` where an s does not make it."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def flop_unit(flops: float) -> tuple[str, int]:
    """The unit in which an amount of FLOPs has digits before its point, and how many FLOPs that is."""
    return next((unit for unit in FLOP_UNITS if flops >= unit[1]), FLOP_UNITS[-1])


def flops_text(flops: float, digits: int = 4) -> str:
    """'348.2 GFLOPs', '306 PFLOPs': to so many significant digits."""
    name, size = flop_unit(flops)
    return f"{flops / size:.{digits}g} {name}"
