"""Searches: a YAML file in, a sweep over re-trainings out. Knows lt_train, ray, optuna and mlflow.

The public surface is three functions: `load` a sweep file, `run` it, `resume` a sweep directory.
"""

from __future__ import annotations

from sweeps.run import resume, run
from sweeps.spec import SweepSpec
from sweeps.spec import load_sweep as load

__all__ = ["SweepSpec", "load", "resume", "run"]
