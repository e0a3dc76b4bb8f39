"""Searches: a YAML file in, a sweep over re-trainings out. Knows lt_train, ray, optuna and mlflow.

The public surface: `load` a sweep file, `run` it, `resume` a sweep directory, `compare` several, write the `report` of
one or more; for a file with `matrix` it is `load_matrix`, `run_matrix` and `resume_matrix`. All are imported when first
used, so that `lt-sweep --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.analysis.comparison import Comparison, compare
    from sweeps.analysis.matrix_table import MatrixTable, matrix_table
    from sweeps.analysis.result import Result
    from sweeps.config.matrix import SweepMatrix, load_matrix
    from sweeps.config.spec import SweepSpec
    from sweeps.config.spec import load_sweep as load
    from sweeps.experiment.matrix_runner import resume_matrix, run_matrix
    from sweeps.experiment.runner import resume, run
    from sweeps.reporting.write import write_report as report

__all__ = [
    "Comparison",
    "MatrixTable",
    "Result",
    "SweepMatrix",
    "SweepSpec",
    "compare",
    "load",
    "load_matrix",
    "matrix_table",
    "report",
    "resume",
    "resume_matrix",
    "run",
    "run_matrix",
]

_PLACES = {
    "Comparison": ("sweeps.analysis.comparison", "Comparison"),
    "MatrixTable": ("sweeps.analysis.matrix_table", "MatrixTable"),
    "SweepMatrix": ("sweeps.config.matrix", "SweepMatrix"),
    "Result": ("sweeps.analysis.result", "Result"),
    "SweepSpec": ("sweeps.config.spec", "SweepSpec"),
    "compare": ("sweeps.analysis.comparison", "compare"),
    "matrix_table": ("sweeps.analysis.matrix_table", "matrix_table"),
    "load": ("sweeps.config.spec", "load_sweep"),
    "load_matrix": ("sweeps.config.matrix", "load_matrix"),
    "report": ("sweeps.reporting.write", "write_report"),
    "resume": ("sweeps.experiment.runner", "resume"),
    "resume_matrix": ("sweeps.experiment.matrix_runner", "resume_matrix"),
    "run": ("sweeps.experiment.runner", "run"),
    "run_matrix": ("sweeps.experiment.matrix_runner", "run_matrix"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'sweeps' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)
