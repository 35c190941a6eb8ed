"""Text is UTF-8 whatever the locale: whoever opens a file, or reads what a program says, names the encoding."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("flowcache", "baselines", "eval", "experiments", "notebooks", "tests")
SOURCES = [ROOT / "run.py", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))]


def unnamed(source: str) -> Iterator[int]:
    """Lines of calls that read or write text in the locale's encoding."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", None) or getattr(call.func, "id", None)
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if "encoding" in given:
            continue
        is_method = isinstance(call.func, ast.Attribute)
        positional = call.args if is_method else call.args[1:]
        mode = given.get("mode") or (positional[0] if positional else ast.Constant("r"))
        opens_text = isinstance(mode, ast.Constant) and isinstance(mode.value, str) and "b" not in mode.value
        if (name in ("read_text", "write_text")) or (name == "open" and opens_text) or given.keys() & {"text"}:
            yield call.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_text_file_names_its_encoding(path):
    lines = list(unnamed(path.read_text(encoding="utf-8")))
    assert lines == [], 'give encoding="utf-8"'


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ("open(path)", False),
        ("open(path, 'w')", False),
        ("path.open()", False),
        ("path.open(mode='a')", False),
        ("path.read_text()", False),
        ("path.write_text(text)", False),
        ("subprocess.run(command, text=True)", False),
        ("open(path, 'rb')", True),
        ("path.open('wb')", True),
        ("path.open(encoding='utf-8')", True),
        ("subprocess.run(command, encoding='utf-8')", True),
        ("av.open(path)", True),
        ("video.open(frames, emit=True)", True),
    ],
)
def test_what_counts(call, named):
    assert (not list(unnamed(call))) == named
