"""docs/notebook.ipynb runs, and shows what is stored in it."""

from pathlib import Path

import nbformat
import pytest
from documentation.notebook import NOTEBOOK, executed
from nbformat import NotebookNode

pytestmark = pytest.mark.slow


def shown(notebook: NotebookNode) -> list[list[list[str]]]:
    """The types of what each cell shows."""
    outputs = [[one for one in cell.get("outputs", ()) if one.get("name") != "stderr"] for cell in notebook.cells]
    return [[sorted(one.get("data", {one.output_type: ""})) for one in cell] for cell in outputs]


def test_the_notebook_runs_and_shows_the_same(tmp_path: Path) -> None:
    assert shown(executed(tmp_path)) == shown(nbformat.read(NOTEBOOK, as_version=4))
