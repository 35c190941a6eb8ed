"""Run the notebooks and write their .ipynb: ``python -m notebooks.build [first_run ...]``, all of them by default.

The jupytext sources (.py, percent format) are what is edited and what the tests run; the .ipynb beside each is the same
cells with their outputs, for reading.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from eval.atomic import atomic_path
from experiments.show.results import made_by

FOLDER = Path(__file__).parent
NAMES = (
    "first_run",
    "add_a_method",
    "read_results",
    "theorem_1",
    "theorem_1_embedded",
    "forecast_orders",
    "stock_pipeline",
)
MOST_BYTES = 500_000  # of an .ipynb: more does not belong into a repository, and no figure here needs it


def source_path(name: str) -> Path:
    return FOLDER / f"{name}.py"


def notebook_path(name: str) -> Path:
    return FOLDER / f"{name}.ipynb"


def read_source(name: str) -> NotebookNode:
    """A notebook without outputs, with the same cell ids every time. Raises ValueError for a name there is not."""
    if name not in NAMES:
        raise ValueError(f"there is no notebook {name!r}; choose from {', '.join(NAMES)}")
    notebook = jupytext.read(source_path(name))
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"{name}-{i}".replace("_", "-")
    notebook.metadata.pop("jupytext", None)  # how the source is written; says nothing about the notebook
    return notebook


def execute(notebook: NotebookNode, timeout_s: float | None = None) -> NotebookNode:
    """Run all cells in a fresh kernel of this Python, in the notebooks' folder, and keep their outputs.

    Raises nbclient's CellExecutionError for a cell that fails, and CellTimeoutError for one beyond ``timeout_s``
    (None: it takes what it takes).
    """
    client = NotebookClient(
        notebook, timeout=timeout_s, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    )
    # Progress bars of loading a checkpoint, and the lack of a nicer one, are nothing to keep.
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}
    client.execute(env={**os.environ, **quiet})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the clock's times: a rerun would change every cell
    notebook.metadata["made_by"] = made_by()
    return notebook


def save(name: str, notebook: NotebookNode) -> Path:
    """Write the .ipynb, whole or not at all. Raises ValueError if it is too large."""
    text = nbformat.writes(notebook) + "\n"
    if len(text.encode()) > MOST_BYTES:
        raise ValueError(f"{name}.ipynb would have {len(text.encode())} bytes of at most {MOST_BYTES}; draw less in it")
    with atomic_path(notebook_path(name)) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return notebook_path(name)


def main(names: list[str]) -> int:
    for name in names or NAMES:
        path = save(name, execute(read_source(name)))
        print(f"written {path.name}, {path.stat().st_size / 1000:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal may not show every name
    sys.exit(main(sys.argv[1:]))
