"""Commands: ``python -m experiments.tables`` runs tables.py here, which starts the module that does the work."""

from __future__ import annotations

import ast
import sys
from importlib import import_module
from pathlib import Path

from experiments.job.process import set_up

ROOT = Path(__file__).parents[2]
_HELP = {"--help", "-h"}


def start(module: str) -> int:
    """Run a module's ``main(arguments)`` and return its exit code. ``--help`` prints the module's docstring; that is
    read, not imported, since importing torch alone takes seconds."""
    arguments = sys.argv[1:]
    if _HELP & set(arguments):
        print(documentation(module))
        return 0
    set_up()
    return import_module(module).main(arguments)


def documentation(module: str) -> str:
    """The docstring of one of the suite's modules, without importing it."""
    source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""
