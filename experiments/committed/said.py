"""What a committed file says of itself: which version of the code made it, on which machine, of how many videos."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from html import unescape
from pathlib import Path

from PIL import Image

from experiments.show.published import described_source, source_of

_VERSION = re.compile(r"\bversion ([0-9a-f]{16})( but for \d+ of \d+ videos)?(?:, records of format (\d+))?")
_NUMBER = re.compile(r"\bn = \d")


@dataclass(frozen=True)
class Said:
    """Of one file.

    Attributes:
        version: of all code, see ``code_version``; None where it says none.
        is_mixed: whether some of its videos are of other code.
        record_format: of the records that it is of; None where it is of none, or says none.
        machine: None where it says none.
        has_n: whether it says over how many videos its figures are.
    """

    version: str | None
    is_mixed: bool = False
    record_format: int | None = None
    machine: str | None = None
    has_n: bool = False


def said_by(path: Path) -> Said | None:
    """None for a file of a kind that says nothing of itself, such as CSV, whose Markdown does."""
    if path.suffix == ".md":
        lines = path.read_text(encoding="utf-8").splitlines()
        caption = lines[0] if lines else ""
        has_n = any("n" in map(str.strip, line.split("|")) for line in lines if line.startswith("| "))
        return _said(caption, source_of(caption).machine, has_n)
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return _described(picture.text.get("Description", ""))
    if path.suffix == ".svg":
        found = re.search(r"<dc:description>(.*?)</dc:description>", path.read_text(encoding="utf-8"), re.DOTALL)
        return _described(unescape(found[1]) if found else "")
    if path.suffix == ".tex":
        return _said(path.read_text(encoding="utf-8"), None, False)
    if path.suffix == ".ipynb":
        metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
        return _said(metadata.get("made_by", ""), None, False)
    return None


def _described(description: str) -> Said:
    return _said(description, described_source(description).machine, bool(_NUMBER.search(description)))


def _said(text: str, machine: str | None, has_n: bool) -> Said:
    found = _VERSION.search(text)
    if found is None:
        return Said(None, machine=machine, has_n=has_n)
    return Said(found[1], bool(found[2]), int(found[3]) if found[3] else None, machine, has_n)
