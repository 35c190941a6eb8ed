"""Commands: ``python -m experiments.tables`` runs tables.py here, which starts the module that does the work."""

from __future__ import annotations

import sys
from importlib import import_module

from experiments.job.errors import HELP, plain
from experiments.job.help import documentation
from experiments.job.process import set_up
from experiments.job.terminal import replace_what_cannot_be_shown


def start(module: str, explains_itself: bool = False) -> int:
    """Run a module's ``main(arguments)`` and return its exit code. ``--help`` prints the module's docstring; that is
    read, not imported, since importing torch alone takes seconds. A module that imports nothing slow may explain
    itself."""
    arguments = sys.argv[1:]
    if HELP & set(arguments) and not explains_itself:
        replace_what_cannot_be_shown()
        print(plain(documentation(module)))
        return 0
    set_up()
    return import_module(module).main(arguments)
