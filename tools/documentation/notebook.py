"""Runs docs/notebook.ipynb in a kernel of its own and keeps what it shows."""

from __future__ import annotations

from pathlib import Path

import nbformat
from documentation.pages import ROOT
from nbclient import NotebookClient
from nbformat import NotebookNode

__all__ = ["NOTEBOOK", "executed", "write_notebook"]

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def executed(place: Path) -> NotebookNode:
    """The notebook after its cells ran in the directory `place`, from the first to the last.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", record_timing=False, resources={"metadata": {"path": str(place)}}
    )
    client.execute()
    return notebook


def write_notebook(place: Path) -> None:
    """Run the notebook in `place` and store its outputs, without warnings on standard error."""
    notebook = executed(place)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, NOTEBOOK)
