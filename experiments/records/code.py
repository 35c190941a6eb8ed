"""Which code made a video or measured it: a hash of the modules that are used, told by their imports.

A module counts with all that it imports, directly or not, inside functions too, as far as that is this repository's.
A name that a package's ``__init__`` only passes on counts as the module it comes from, so that a package may grow
without making older videos anew. Comments, docstrings and layout do not count, nor does the version of Python.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments.job.paths import ROOT

PACKAGES = ("flowcache", "baselines", "eval")
# Nodes' fields that say nothing, or that some versions of Python lack.
_IGNORED = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Source:
    """A module as it is written.

    Attributes:
        digest: of its statements.
        imports: modules that it imports, and the name that it takes from each; None for the module itself.
        passed_on: of a package's __init__, by name: where it imports that from, in the same form.
    """

    digest: str
    imports: frozenset[tuple[str, str | None]]
    passed_on: dict[str, tuple[str, str | None]]


def code_hash(modules: Iterable[str]) -> str:
    """Of the code that these modules (dotted names) are and use."""
    return _hash(ROOT, tuple(sorted(set(modules))))


def library_hash() -> str:
    """Of all models and methods, and what they are run and timed by."""
    return code_hash([*_modules("flowcache", "baselines"), "eval.latency"])


def code_version() -> str:
    """Of all that makes, times and measures videos: what a table or figure says that it is of."""
    return code_hash(_modules(*PACKAGES))


def _modules(*packages: str) -> list[str]:
    """All of some packages, by name."""
    paths = (path for name in packages for path in (ROOT / name).rglob("*.py"))
    names = (path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in paths)
    return [name.removesuffix(".__init__") for name in names]


def modules_used(modules: Iterable[str], root: Path = ROOT) -> list[str]:
    """These modules, and all of the packages under ``root`` that they import, by name."""
    used, to_read = set(), list(modules)
    while to_read:
        name = to_read.pop()
        if name in used:
            continue
        used.add(name)
        source = _read(root, name)
        if source is not None:
            to_read += [target for imported in source.imports for target in _targets(root, *imported)]
    return sorted(used)


def modules_of(dotted: str) -> set[str]:
    """Where an object that a configuration names is from, such as ``flowcache.models.magi.Magi.from_pretrained``."""
    parts = dotted.split(".")
    for place in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:place])
        if _path(ROOT, module) is not None:
            return _targets(ROOT, module, parts[place]) or {module}
    return set()


def statements(source: str | bytes) -> str:
    """Python source without comments, docstrings and layout, the same by every version of Python that can read it."""
    written: list[str] = []
    _write(ast.parse(source), written)
    return "".join(written)


@cache
def _hash(root: Path, modules: tuple[str, ...]) -> str:
    digest, collecting = hashlib.sha256(), gc.isenabled()
    gc.disable()  # syntax trees are many objects and no garbage; looking for some takes three times as long as the rest
    try:
        for name in modules_used(modules, root):
            source = _read(root, name)
            digest.update(f"{name}\0{source.digest if source else 'missing'}\0".encode())
    finally:
        if collecting:
            gc.enable()
    return digest.hexdigest()[:16]


@cache
def _read(root: Path, name: str) -> Source | None:
    path = _path(root, name)
    if path is None:
        return None
    tree = ast.parse(path.read_bytes())
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imports = {bound for node in ast.walk(tree) for bound in _bound(node, package).values()}
    passed_on: dict[str, tuple[str, str | None]] = {}
    if path.name == "__init__.py":
        for node in tree.body:
            for inner in node.body if isinstance(node, ast.If) else [node]:  # of what is only loaded when asked for
                passed_on |= _bound(inner, package)
    written: list[str] = []
    _write(tree, written)
    return Source(hashlib.sha256("".join(written).encode()).hexdigest(), frozenset(imports), passed_on)


def _path(root: Path, name: str) -> Path | None:
    """The file of a module of the packages; of another, which is somebody's own model or method, its source's."""
    if name.partition(".")[0] in PACKAGES:
        base = root.joinpath(*name.split("."))
        return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        with suppress(ImportError, ValueError):
            file = getattr(find_spec(name), "origin", None)
    return Path(file) if file is not None and file.endswith(".py") else None


def _bound(node: ast.AST, package: str) -> dict[str, tuple[str, str | None]]:
    """The names that an import statement binds, with what they stand for; of any other node none."""
    if isinstance(node, ast.Import):
        return {alias.asname or alias.name: (alias.name, None) for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        module = ".".join([*above, *([node.module] if node.module else [])])
        return {alias.asname or alias.name: (module, alias.name) for alias in node.names}
    return {}


def _targets(root: Path, module: str, name: str | None) -> set[str]:
    """The modules of the packages that ``from module import name``, or ``import module``, depends on."""
    if module.partition(".")[0] not in PACKAGES:
        return set()
    if name is None:
        return {module}
    if _path(root, f"{module}.{name}") is not None:
        return {f"{module}.{name}"}
    source = _read(root, module)
    if source is not None and name in source.passed_on:
        return _targets(root, *source.passed_on[name])
    return {module}


def _write(value: Any, written: list[str]) -> None:
    """A node, list or constant of a syntax tree as text that tells it from every other."""
    kind = type(value)
    if kind is list:
        written.append("[")
        for item in value:
            _write(item, written)
        written.append("]")
    elif kind is ast.Constant or kind is ast.MatchSingleton:
        written.append(f"{value.value!a},")
    elif isinstance(value, ast.AST):
        written.append(f"{kind.__name__}(")
        for name in value._fields:
            child = getattr(value, name, None)
            if name == "body" and isinstance(value, _DOCUMENTED) and ast.get_docstring(value, clean=False) is not None:
                child = child[1:] or [ast.Pass()]
            if name == "values" and kind is ast.JoinedStr:
                child = _joined(child)
            if child and name not in _IGNORED:  # what is empty, a newer Python may have and an older one not
                written.append(f"{name}=")
                _write(child, written)
        written.append(")")
    else:
        written.append(f"{value!a},")


def _joined(pieces: list[ast.expr]) -> list[ast.expr]:
    """The pieces of an f-string, whose plain text some versions of Python break up or add empty text to."""
    joined: list[ast.expr] = []
    for piece in pieces:
        if not isinstance(piece, ast.Constant):
            joined.append(piece)
        elif joined and isinstance(joined[-1], ast.Constant):
            joined[-1] = ast.Constant(joined[-1].value + piece.value)
        elif piece.value:
            joined.append(piece)
    return joined
