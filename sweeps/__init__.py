"""Searches: a YAML file in, a sweep over re-trainings out. Knows lt_train, ray, optuna and mlflow.

The public surface: `load` a sweep file, `run` it, `resume` a sweep directory, `compare` several, write the `report` of
one or more; for a file with `across` it is `load_family`, `run_family` and `resume_family`. All are imported when first
used, so that `lt-sweep --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.analysis.comparison import Comparison, compare
    from sweeps.analysis.matrix_table import CrossTable, cross_table
    from sweeps.analysis.result import Result
    from sweeps.config.matrix import Family, load_family
    from sweeps.config.spec import SweepSpec
    from sweeps.config.spec import load_sweep as load
    from sweeps.experiment.matrix_runner import resume_family, run_family
    from sweeps.experiment.runner import resume, run
    from sweeps.reporting.write import write_report as report

__all__ = [
    "Comparison",
    "CrossTable",
    "Family",
    "Result",
    "SweepSpec",
    "compare",
    "cross_table",
    "load",
    "load_family",
    "report",
    "resume",
    "resume_family",
    "run",
    "run_family",
]

_PLACES = {
    "Comparison": ("sweeps.analysis.comparison", "Comparison"),
    "CrossTable": ("sweeps.analysis.matrix_table", "CrossTable"),
    "Family": ("sweeps.config.matrix", "Family"),
    "Result": ("sweeps.analysis.result", "Result"),
    "SweepSpec": ("sweeps.config.spec", "SweepSpec"),
    "compare": ("sweeps.analysis.comparison", "compare"),
    "cross_table": ("sweeps.analysis.matrix_table", "cross_table"),
    "load": ("sweeps.config.spec", "load_sweep"),
    "load_family": ("sweeps.config.matrix", "load_family"),
    "report": ("sweeps.reporting.write", "write_report"),
    "resume": ("sweeps.experiment.runner", "resume"),
    "resume_family": ("sweeps.experiment.matrix_runner", "resume_family"),
    "run": ("sweeps.experiment.runner", "run"),
    "run_family": ("sweeps.experiment.matrix_runner", "run_family"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'sweeps' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)
