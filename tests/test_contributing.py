"""CONTRIBUTING.md shows code that is there, counts its lines right, and names files that exist."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from importlib import import_module
from pathlib import Path

import pytest

from flowcache.forecast.base import Forecast
from flowcache.kv.select.base import KeySelector
from flowcache.kv.store.base import KvStore
from flowcache.reuse.base import ReusePolicy

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
HEADING = re.compile(r"## A (\w+): `(\S+)`, (\d+) lines of code\n(.*?)(?=\n## )", re.DOTALL)
EXAMPLES = {kind: (path, int(count), section) for kind, path, count, section in HEADING.findall(TEXT)}
KINDS = {"policy": ReusePolicy, "forecast": Forecast, "selector": KeySelector, "store": KvStore}
MOST_LINES, MOST_LINES_OF_A_PART = 120, 60
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def lines_of_code(source: str) -> int:
    """Without blank lines, comments and docstrings."""
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            code |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            code -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(code)


def excerpts(section: str, language: str) -> list[str]:
    """What its code blocks show in one piece; three dots stand for what is left out."""
    blocks = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    return [piece for block in blocks for piece in block.split("...\n")]


def test_lines_of_code_by_hand():
    header = '"""Of\na module."""\n\nimport a  # one\n\n\n# none\n'
    source = header + 'def f(\n    x,\n):\n    """None."""\n    return """\ntwo"""\n'
    assert lines_of_code(source) == 1 + 3 + 2


def test_it_is_one_page_with_an_example_of_each_kind():
    assert len(TEXT.splitlines()) <= MOST_LINES
    assert set(EXAMPLES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_is_a_part_of_its_kind_and_as_short_as_is_said(kind):
    path, count, _ = EXAMPLES[kind]
    source = (ROOT / path).read_text(encoding="utf-8")
    assert lines_of_code(source) == count < MOST_LINES_OF_A_PART
    module = import_module(path.removesuffix(".py").replace("/", "."))
    own = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    assert [issubclass(each, KINDS[kind]) for each in own] == [True]


@pytest.mark.parametrize("kind", KINDS)
def test_an_excerpt_is_in_its_file_in_this_order(kind):
    path, _, section = EXAMPLES[kind]
    source, pieces = (ROOT / path).read_text(encoding="utf-8"), excerpts(section, "python")
    places = [source.find(piece) for piece in pieces]
    assert pieces
    assert -1 not in places, f"{path} no longer holds: {pieces[places.index(-1)]}"
    assert places == sorted(places)


def test_the_yaml_is_the_files():
    (shown,) = excerpts(EXAMPLES["policy"][2], "yaml")
    path, _, lines = shown.partition("\n")
    assert lines in (ROOT / path.removeprefix("# ")).read_text(encoding="utf-8")


def test_every_file_and_folder_that_it_names_is_there():
    named = re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", TEXT)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_choice_that_it_shows_can_be_made():
    chosen = re.findall(r"\b(reuse|forecast|kv|kv/store)=(\w+)", TEXT)
    assert {group for group, _ in chosen} == {"reuse", "forecast", "kv", "kv/store"}
    assert [name for group, name in chosen if not (ROOT / "conf" / group / f"{name}.yaml").exists()] == []
