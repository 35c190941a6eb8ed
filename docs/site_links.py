"""For mkdocs.yml: pages link to each other as files of the repository, and the site follows them wherever those lie.

Pages of docs/ keep their names; whatever else is linked to, from README.md or a table to a notebook, is taken along
under its path in the repository. Links are rewritten accordingly, so that the Markdown is right where it lies; those of
a page of HTML too.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
HOME = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")  # of the navigation, outside of docs/
_FENCED = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)\s#]*)")
_LINK_OF_HTML = re.compile(r'(\b(?:href|src)=")(?![a-z]+:|#)([^"#]*)')


def linked(text: str) -> list[str]:
    """The paths that a page links to, without those in its code."""
    return [match[2] for part in _FENCED.split(text)[::2] for match in _LINK.finditer(part)]


def target_path(page: str, link: str) -> str:
    """The path in the repository that a link of a page there leads to; of a folder, that of its README."""
    path = normpath(join(dirname(page), link))
    return f"{path}/README.md" if (ROOT / path).is_dir() else path


def site_path(path: str) -> str:
    """Where the site has a file of the repository."""
    return path.removeprefix("docs/")


def repository_path(uri: str) -> str:
    """The file of the repository that the site has at a place."""
    return uri if not (ROOT / "docs" / uri).is_file() else f"docs/{uri}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take along whatever the pages link to, and the pages link to that are taken along."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()] + list(HOME)
    while waiting:
        path = waiting.pop()
        if files.get_file_from_path(site_path(path)) is None:
            if not (ROOT / path).is_file():
                continue  # strict building names the page that links to it
            files.append(taken_along(path, config))
        elif not path.startswith("docs/"):
            continue  # taken along already
        if path.endswith(".md"):
            text = (ROOT / path).read_text(encoding="utf-8")
            found = [target_path(path, link) for link in linked(text)]
            waiting += [other for other in found if not other.startswith("docs/")]
        elif path.endswith(".html"):
            text = (ROOT / path).read_text(encoding="utf-8")
            waiting += [target_path(path, match[2]) for match in _LINK_OF_HTML.finditer(text)]
    return files


def taken_along(path: str, config: MkDocsConfig) -> File:
    """A file of the repository for the site; HTML with its links as the site has them."""
    if not path.endswith(".html"):
        return File.generated(config, site_path(path), abs_src_path=str(ROOT / path))

    def rewritten(match: re.Match[str]) -> str:
        target = re.sub(r"README\.md$", "index.md", site_path(target_path(path, match[2])))
        return match[1] + relpath(re.sub(r"\.md$", ".html", target), dirname(site_path(path)))

    text = (ROOT / path).read_text(encoding="utf-8")
    return File.generated(config, site_path(path), content=_LINK_OF_HTML.sub(rewritten, text))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links as the site has them."""
    here, place = repository_path(page.file.src_uri), dirname(page.file.src_uri)

    def rewritten(match: re.Match[str]) -> str:
        target = site_path(target_path(here, match[2]))
        return match[1] + relpath(target, place or ".")

    parts = _FENCED.split(markdown)
    parts[::2] = [_LINK.sub(rewritten, part) for part in parts[::2]]
    return "".join(parts)
