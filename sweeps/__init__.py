"""Searches: a YAML file in, a sweep over re-trainings out. Knows lt_train, ray, optuna and mlflow.

The public surface: `load` a sweep file, `run` it, `resume` a sweep directory, `compare` several, write the `report` of
one or more; for a file with `across` it is `load_family`, `run_family` and `resume_family`. All are imported when first
used, so that `lt-sweep --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.driver import resume, run
    from sweeps.families.crosstable import CrossTable, cross_table
    from sweeps.families.driver import resume_family, run_family
    from sweeps.families.family import Family, load_family
    from sweeps.reporting.comparing import Comparison, compare
    from sweeps.reporting.writing import write_report as report
    from sweeps.result import Result
    from sweeps.spec import SweepSpec
    from sweeps.spec import load_sweep as load

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
    "Comparison": ("sweeps.reporting.comparing", "Comparison"),
    "CrossTable": ("sweeps.families.crosstable", "CrossTable"),
    "Family": ("sweeps.families.family", "Family"),
    "Result": ("sweeps.result", "Result"),
    "SweepSpec": ("sweeps.spec", "SweepSpec"),
    "compare": ("sweeps.reporting.comparing", "compare"),
    "cross_table": ("sweeps.families.crosstable", "cross_table"),
    "load": ("sweeps.spec", "load_sweep"),
    "load_family": ("sweeps.families.family", "load_family"),
    "report": ("sweeps.reporting.writing", "write_report"),
    "resume": ("sweeps.driver", "resume"),
    "resume_family": ("sweeps.families.driver", "resume_family"),
    "run": ("sweeps.driver", "run"),
    "run_family": ("sweeps.families.driver", "run_family"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'sweeps' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)
