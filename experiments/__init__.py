"""The suite around the library, room by room; each imports only from those before it (tests/test_layers.py).

job: how a job is read. records: how it is kept. show: tables, figures, the report. run: how videos are made. training:
the embedded models. studies and benchmarks: what is measured beside the main job. committed: all results, again.
commands: the command line.
"""

from pathlib import Path

# ``python -m experiments.tables`` finds commands/tables.py, so that commands need no files beside the rooms.
__path__.append(str(Path(__file__).with_name("commands")))
