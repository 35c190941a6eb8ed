"""Prompts from every kind of file are read as what they are, or refused; nothing else becomes a caption."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from experiments.job.cli import compose_config
from experiments.job.errors import BadInput
from experiments.job.prompts import MOST_PROMPT_CHARACTERS, read_prompts
from experiments.job.quoting import typed

FILES = {
    "p.txt": "a red circle, moving right\n\n a blue square \r\n",
    "no_suffix": "a red circle, moving right\na blue square\n",
    "with_mark.txt": "\ufeffa red circle, moving right\na blue square\n",
    "P.CSV": 'id,Prompt\n1,"a red circle, moving right"\n\n2,a blue square\n',
    "only_prompts.csv": '"prompt"\n"a red circle, moving right"\na blue square\n',
    "p.tsv": "prompt\tid\na red circle, moving right\t1\na blue square\t2\n",
    "texts.json": '["a red circle, moving right",\n "a blue square"]',
    "objects.json": '[{"id": 1, "prompt": "a red circle, moving right"}, {"prompt": "a blue square"}]',
    "p.jsonl": '{"prompt": "a red circle, moving right"}\n\n{"prompt": "a blue square", "id": null}\n',
    "texts.jsonl": '"a red circle, moving right"\n"a blue square"\n',
}


def prompts_of(*overrides: str) -> tuple[str, ...]:
    return read_prompts(compose_config(list(overrides)))


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_what_it_is(tmp_path, name):
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    assert prompts_of(f"prompts={tmp_path / name}") == ("a red circle, moving right", "a blue square")


BROKEN = {
    "no_column.csv": ("id,caption\n1,a cat\n", "must name one column 'prompt', and names 'id', 'caption'"),
    "two_columns.csv": ("prompt,prompt\na,b\n", "must name one column 'prompt'"),
    "semicolons.csv": ("id;prompt\n1;a cat\n", "and names 'id;prompt'"),
    "no_header.tsv": ("1\ta red circle\n2\ta blue square\n", "and names '1', 'a red circle'"),
    "empty.csv": ("", "and names nothing"),
    "unquoted.csv": (
        "id,prompt\n1,a red circle, moving\n",
        "line 2 has 3 cells and the first line 2; put a",
    ),
    "short.csv": ("id,prompt\n1,a cat\n2\n", "line 3 has 1 cell and the first line 2"),
    "open.csv": ('prompt\n"a cat\n', "unexpected end of data"),
    "no_text.csv": ("id,prompt\n1,a cat\n2,\n", "prompt 2 is empty"),
    "only_header.csv": ("prompt\n", "there is no prompt in"),
    "broken.json": ("[", "it is no JSON"),
    "deep.json": ("[" * 100_000, "it is no JSON"),
    "object.json": ('{"prompts": ["a cat"]}', "it must be a list of texts, or of objects with a 'prompt'"),
    "no_prompt.json": ('[{"prompt": "a cat"}, {"caption": "a dog"}]', "must have a 'prompt'; one has 'caption'"),
    "null.json": ('["a cat", null]', "prompt 2 is null and no text"),
    "number.json": ('[{"prompt": 7}]', "prompt 1 is 7 and no text"),
    "nested.json": ('[["a cat"]]', r'prompt 1 is \["a cat"\] and no text'),
    "half_a_pair.json": (r'["\ud800"]', r"prompt 1 holds the control character U\+D800"),
    "broken.jsonl": ('{"prompt": "a cat"}\n{"prompt"\n', "line 2 is no JSON"),
    "blank.jsonl": ('{"prompt": " "}', "prompt 1 is empty"),
    "comment.txt": ("a cat\n# my prompts\n", "line 2 begins with #, and comments are not read"),
    "prompts.md": ("- a cat\n", "is of a kind that is not read; give a .txt file"),
    "prompts.yaml": ("- a cat\n", "is of a kind that is not read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_none_is_refused(tmp_path, name):
    content, message = BROKEN[name]
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(BadInput, match=message):
        prompts_of(f"prompts={tmp_path / name}")


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.json"])
def test_a_file_in_another_encoding_is_refused(tmp_path, name, encoding):
    (tmp_path / name).write_text('["une forme dor\u00e9e"]', encoding=encoding)
    with pytest.raises(BadInput, match="cannot be read as UTF-8 text"):
        prompts_of(f"prompts={tmp_path / name}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("experiments/prompts", "no prompt file at experiments/prompts, which is a folder"),
        (".", "which is a folder"),
        (os.devnull, "no prompt file at"),
        *(
            (missing, "no prompt file at")
            for missing in ("my_prompts.jsonl", "my_prompts", "prompts.md", "more/prompts")
        ),
        *(
            (missing, "no prompt file at")
            for missing in ("~/prompts", "../my prompts", "my prompts.txt", "my prompts.TSV")
        ),
    ],
)
def test_a_path_to_nothing_is_no_caption(source, message):
    with pytest.raises(BadInput, match=message) as refused:
        prompts_of(typed_in("prompts", source))
    hint = str(refused.value).partition("if it is a caption, give ")[2]
    assert prompts_of(*shlex.split(hint)) == (source,)


@pytest.mark.parametrize("caption", ["cat", "a red circle/square", "version 3.5", "一只猫/狗", "well-known"])
def test_a_caption_is_no_path(caption):
    assert prompts_of(typed_in("prompts", caption)) == (caption,)


def test_a_path_counts_from_where_the_program_is_started_then_from_the_repository(tmp_path, monkeypatch):
    listed = prompts_of("prompts=experiments/prompts/embedded.txt")
    monkeypatch.chdir(tmp_path)
    assert prompts_of("prompts=experiments/prompts/embedded.txt") == listed
    Path("mine.txt").write_text("a cat\n", encoding="utf-8")
    assert prompts_of("prompts=mine.txt") == ("a cat",)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir("/")
    assert prompts_of(r"prompts='~/mine.txt'") == ("a cat",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("[a cat,null]", "prompt 2 is null and no text; put it in double quotes if it is a caption"),
        ("[null,true]", "prompt 1 is null"),
        ("[a cat,true]", "prompt 2 is true"),
        ("[7]", "prompt 1 is 7"),
        ("[[a cat]]", r'prompt 1 is \["a cat"\]'),
        ("[{a:cat}]", "prompt 1 is"),
        ("[a cat,'']", "prompt 2 is empty"),
        ("['',a cat]", "prompt 1 is empty"),
        ("[]", "there is no prompt in"),
    ],
)
def test_a_list_holds_texts(given, message):
    with pytest.raises(BadInput, match=message):
        prompts_of(f"prompts={given}")


def test_how_many_there_are_is_said_in_words(tmp_path):
    (tmp_path / "one.txt").write_text("a cat\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"num_prompts=2 but there is 1 prompt; choose 1$"):
        prompts_of(f"prompts={tmp_path / 'one.txt'}", "num_prompts=2")
    with pytest.raises(BadInput, match="num_prompts=3 but there are 2 prompts; choose 1 to 2"):
        prompts_of("prompts=[a,b]", "num_prompts=3")


def test_a_text_too_long_for_a_path_is_a_caption():
    with pytest.raises(BadInput, match=f"shorten it to {MOST_PROMPT_CHARACTERS}"):
        prompts_of(f"prompts={'word ' * 4000}")


def typed_in(key: str, text: str) -> str:
    (argument,) = shlex.split(typed(key, text))
    return argument


@given(st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1))
def test_what_is_typed_arrives_as_it_is(text):
    parser = OverridesParser.create()
    assert parser.parse_override(typed_in("prompts", text)).value() == text
    (argument,) = shlex.split(typed("prompts", text, "b", as_list=True))
    assert parser.parse_override(argument).value() == [text, "b"]
