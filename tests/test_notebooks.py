"""The notebooks run from their sources, their own assertions hold, and the .ipynb beside them are of the same cells."""

import re

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from experiments.records import code_version
from notebooks import build

TIMEOUT_S = 600  # a cell; all cells of a notebook take well under a minute on two idle cores
# Lines of cells, and the same with fewer and shorter videos than a reader is shown: every cell and assertion runs.
SHORTER = {
    "first_run": ("NUM_FRAMES = 72", "NUM_FRAMES = 48"),
    "add_a_method": (".splitlines()[:2]", ".splitlines()[:1]"),
    "read_results": ("NUM_PROMPTS, NUM_FRAMES = 6, 48", "NUM_PROMPTS, NUM_FRAMES = 6, 24"),
}


def shortened(name):
    notebook = build.read_source(name)
    if name in SHORTER:
        (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and SHORTER[name][0] in cell.source)
        cell.source = cell.source.replace(*SHORTER[name])
    return notebook


def shape(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_every_source_is_a_notebook_and_every_notebook_has_its_source():
    sources = {path.stem for path in build.FOLDER.glob("*.py")} - {"build"}
    assert sources == {path.stem for path in build.FOLDER.glob("*.ipynb")} == set(build.NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", build.NAMES)
def test_it_runs_from_its_source(name, tmp_path, monkeypatch):
    monkeypatch.setenv("NOTEBOOK_OUTPUT_DIR", str(tmp_path))  # nothing is found finished there
    notebook = build.execute(shortened(name), TIMEOUT_S)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any("assert " in cell.source for cell in code)
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)


@pytest.mark.parametrize("name", build.NAMES)
def test_the_notebook_is_in_step_with_its_source(name):
    committed = nbformat.read(build.notebook_path(name), as_version=4)
    nbformat.validate(committed)
    assert shape(committed) == shape(build.read_source(name)), f"run: python -m notebooks.build {name}"


@pytest.mark.parametrize("name", build.NAMES)
def test_the_notebook_was_run_whole_and_is_fit_to_commit(name):
    path = build.notebook_path(name)
    assert path.stat().st_size <= build.MOST_BYTES
    outputs = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.execution_count, f"{name}: a cell was not run"
            outputs += cell.outputs
    kinds = {output.output_type for output in outputs}
    assert kinds <= {"stream", "display_data"}, "an error, or a bare value"
    texts = [output.get("text", "") or output["data"].get("text/plain", "") for output in outputs]
    assert not [text for text in texts if re.search(r"(?<![\w.])/(home|root|tmp|work|Users)\b", text)], "machine paths"
    assert not [output for output in outputs if output.get("name") == "stderr"], "warnings"


def test_a_failing_assertion_in_a_notebook_fails_its_run():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2, 'they differ'")])
    with pytest.raises(CellExecutionError, match="they differ"):
        build.execute(notebook)


def test_a_notebook_says_which_code_ran_it():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")])
    assert build.execute(notebook).metadata["made_by"] == f"version {code_version()}"


def test_an_unknown_notebook_names_the_known_ones():
    with pytest.raises(ValueError, match=r"no notebook 'first'; choose from first_run, add_a_method"):
        build.read_source("first")


def test_a_notebook_too_large_to_commit_is_not_written(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    huge = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("x" * build.MOST_BYTES)])
    with pytest.raises(ValueError, match="draw less in it"):
        build.save("first_run", huge)
    assert not list(tmp_path.iterdir())
