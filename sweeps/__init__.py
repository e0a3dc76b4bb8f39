"""Searches: a YAML file in, a sweep over re-trainings out. Knows lt_train, ray, optuna and mlflow.

The public surface is four functions: `load` a sweep file, `run` it, `resume` a sweep directory, and write a `report` of
one or more. They are imported when first used, so that `lt-sweep --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps import report
    from sweeps.driver import resume, run
    from sweeps.result import Result
    from sweeps.spec import SweepSpec
    from sweeps.spec import load_sweep as load

__all__ = ["Result", "SweepSpec", "load", "report", "resume", "run"]

_PLACES = {
    "Result": ("sweeps.result", "Result"),
    "SweepSpec": ("sweeps.spec", "SweepSpec"),
    "load": ("sweeps.spec", "load_sweep"),
    "resume": ("sweeps.driver", "resume"),
    "run": ("sweeps.driver", "run"),
}


def __getattr__(name: str) -> Any:
    if name == "report":  # a room that can be called
        return importlib.import_module("sweeps.report")
    if name not in _PLACES:
        raise AttributeError(f"module 'sweeps' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)
