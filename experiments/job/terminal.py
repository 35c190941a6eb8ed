"""What a program prints, on terminals that cannot show all of it."""

from __future__ import annotations

import io
import sys


def replace_what_cannot_be_shown() -> None:
    """Have standard output show a question mark for what its encoding lacks, where it would end the program."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
