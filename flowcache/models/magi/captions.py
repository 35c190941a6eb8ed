"""MAGI-1's captions as its text encoder was trained on them: lower case, plain, without what the web leaves in them.

The rules, their order and that they are gone through twice are the official code's (SandAI-org/MAGI-1:
inference/model/t5/t5_model.py, which has them from DeepFloyd IF); every rule replaces what it matches.
"""

from __future__ import annotations

import html
import re
from html.entities import html5
from html.parser import HTMLParser
from urllib.parse import unquote_plus

import ftfy

Rules = tuple[tuple[re.Pattern[str], str], ...]

_ADDRESS = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILE_TYPES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"


def _rules(*pairs: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


_MARKS_AND_ADDRESSES = _rules(
    ("<person>", "person"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_ADDRESS})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_ADDRESS})", ""),
)
_CHARACTERS = _rules(
    (r"@[\w\d]+\b", ""),  # names of users
    (r"[\u31c0-\u9fff]+", ""),  # Chinese and the blocks before it
    # Every dash, every double and every single quotation mark in its plain form.
    (
        r"[\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
        r"\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d]+",
        "-",
    ),
    (r"[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    (r"[\u2018\u2019]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),  # written out
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_FILE_TYPES})", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#\u00ae\u2022\u00a9\u2122&@\u00b7\u00ba\u00bd\u00be\u00bf\u00a1\u00a7~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_JOINT, _MOST_JOINTS = re.compile(r"[-_]"), 3  # a_name-with_more-of_them_is_words
_WORDS = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILE_TYPES})(\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[x\u0445\u00d7]\d+\.?\d*\b", ""),  # sizes, also with Cyrillic x
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    # Of the whole: quotation marks around it, and punctuation at either end.
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def readable_caption(prompt: str) -> str:
    """The prompt as the text encoder reads it. Raises ValueError where its markup is broken or nothing is left."""
    try:
        caption = clean_caption(prompt)
    except AssertionError as error:  # html.parser's
        raise ValueError(f"the prompt {prompt!r} holds broken markup ({error}); write plain text") from error
    if not caption:
        raise ValueError(
            f"nothing is left of the prompt {prompt!r} as MAGI-1 reads it, without Chinese, addresses and file "
            "names; say in English what the video shows"
        )
    return caption


def clean_caption(caption: str) -> str:
    """What the text encoder is given of a caption; nothing may be left of one in Chinese."""
    return _cleaned_once(_cleaned_once(caption))


def _cleaned_once(caption: str) -> str:
    caption = _applied(_MARKS_AND_ADDRESSES, unquote_plus(caption).strip().lower())
    caption = _applied(_CHARACTERS, _text_of(caption))
    if len(_JOINT.findall(caption)) > _MOST_JOINTS:
        caption = _JOINT.sub(" ", caption)
    caption = html.unescape(html.unescape(ftfy.fix_text(caption))).strip()
    return _applied(_WORDS, caption).strip()


def _applied(rules: Rules, caption: str) -> str:
    for pattern, replacement in rules:
        caption = pattern.sub(replacement, caption)
    return caption


def _text_of(markup: str) -> str:
    parser = _Text(convert_charrefs=False)
    parser.feed(markup)
    parser.close()
    return "".join(parser.parts)


class _Text(HTMLParser):
    """What is left of HTML without tags, comments, scripts and style sheets."""

    def __init__(self, **options: bool) -> None:
        super().__init__(**options)
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:  # of a script or a style sheet
            self.parts.append(data)

    def handle_charref(self, name: str) -> None:
        self.parts.append(html.unescape(f"&#{name};"))

    def handle_entityref(self, name: str) -> None:
        self.parts.append(html5.get(f"{name};", f"&{name}"))
