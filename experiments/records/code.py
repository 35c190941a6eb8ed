"""Which code made a video."""

from __future__ import annotations

import ast
import hashlib
from functools import cache

from experiments.job.job import ROOT

CODE_FOLDERS = ("flowcache", "baselines")


@cache
def code_hash() -> str:
    """Of the library's and the methods' source: a change that could alter a video makes new records. Comments,
    docstrings and layout are left out, since they cannot."""
    digest = hashlib.sha256()
    for folder in CODE_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT).as_posix()}\0{statements(path.read_text())}\0".encode())
    return digest.hexdigest()[:16]


def statements(source: str) -> str:
    """Python source without comments, docstrings and its layout."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
